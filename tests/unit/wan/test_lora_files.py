"""Every key of a LoRA file has an effect, or the file is rejected and the model does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from causvid.pipeline import CausVidPipeline
from causvid.runtime.shapes import VideoShape
from causvid.wan.transformer.lora_files import check_lora_files, without_fused_adapters
from causvid.wan.transformer.wan import as_causal, build_transformer, load_transformer
from causvid.wan.vae.vae import build_vae

State = dict[str, torch.Tensor]
TARGETS = ["to_q", "to_out.0", "ffn.net.0.proj"]
NAMES = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_out.0": "o", "ffn.net.0.proj": "ffn.0"}


@pytest.fixture(params=["bidirectional", "causal"])
def model(request: pytest.FixtureRequest, transformer_config: dict[str, Any]) -> WanTransformer3DModel:
    """Return a transformer that checks LoRA files, as the transformer of a pipeline does."""
    made = build_transformer(transformer_config, seed=0)
    if request.param == "causal":
        made = as_causal(made, frames_per_block=2)
    check_lora_files(made)
    return made.eval()


@pytest.fixture(scope="module")
def lora(transformer_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that ``save_lora_adapter`` wrote.

    The keys have no prefix, the rank is 2, and the metadata contain lora_alpha 8.
    """
    made = build_transformer(transformer_config, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False), "x")
    folder = tmp_path_factory.mktemp("lora")
    made.save_lora_adapter(folder, adapter_name="x")
    return folder / "pytorch_lora_weights.safetensors"


def prefixed(state: State, prefix: str = "transformer.") -> State:
    return {prefix + key: value for key, value in state.items()}


def wan_names(state: State) -> State:
    renamed = {}
    for key, value in state.items():
        for ours, theirs in NAMES.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed


def velocity(model: WanTransformer3DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    video, text = torch.randn(1, 4, 2, 4, 4, generator=generator), torch.randn(1, 3, 8, generator=generator)
    times = torch.full((1, 2) if "frames_per_block" in model.config else (1,), 500.0)
    with torch.no_grad():
        out: torch.Tensor = model(video, timestep=times, encoder_hidden_states=text, return_dict=False)[0]
    return out


def adapted(model: WanTransformer3DModel, state: State, scale: float) -> torch.Tensor:
    """Return the output of ``model`` with the weights W + scale B A."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key in (key for key in state if key.endswith("lora_A.weight")):
            name = key.removesuffix(".lora_A.weight")
            other.get_submodule(name).weight += scale * state[f"{name}.lora_B.weight"] @ state[key]  # type: ignore[operator]
    return velocity(other)


# --- LoRA files that fit the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "prefix", "scale"),
    [
        (lambda file: str(file), None, 4.0),
        (lambda file: file, None, 4.0),
        (lambda file: file.parent, None, 4.0),
        (lambda file: load_file(file), None, 1.0),  # a state dict without a file has no lora_alpha
        (lambda file: prefixed(load_file(file)), "transformer", 1.0),
        (lambda file: prefixed(load_file(file), "base_model.model."), "base_model.model", 1.0),
        (
            lambda file: {
                k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in load_file(file).items()
            },
            None,
            1.0,
        ),
    ],
)
def test_a_lora_file_that_fits_is_applied(
    given: Callable[[Path], Any], prefix: str | None, scale: float, model: WanTransformer3DModel, lora: Path
) -> None:
    before, expected = velocity(model), adapted(model, load_file(lora), scale)
    model.load_lora_adapter(given(lora), prefix=prefix)
    torch.testing.assert_close(velocity(model), expected, rtol=1e-4, atol=1e-5)
    assert (velocity(model) - before).abs().max() > 1e-2
    model.unload_lora()
    assert torch.equal(velocity(model), before)


def test_the_alpha_in_a_file_of_a_diffusers_pipeline_is_used(
    model: WanTransformer3DModel, lora: Path, tmp_path: Path
) -> None:
    """``save_lora_weights`` adds a prefix to the keys and to the metadata."""
    expected = adapted(model, load_file(lora), 4.0)
    metadata = {"r": 2, "lora_alpha": 8, "target_modules": TARGETS}
    WanPipeline.save_lora_weights(tmp_path, load_file(lora), transformer_lora_adapter_metadata=metadata)
    model.load_lora_adapter(tmp_path, adapter_name="one")
    torch.testing.assert_close(velocity(model), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one already in use"):
        model.load_lora_adapter(tmp_path, adapter_name="one")


def test_a_pickled_lora_is_read(model: WanTransformer3DModel, lora: Path, tmp_path: Path) -> None:
    torch.save(prefixed(load_file(lora)), tmp_path / "pytorch_lora_weights.bin")
    expected = adapted(model, load_file(lora), 1.0)
    model.load_lora_adapter(tmp_path / "pytorch_lora_weights.bin")
    model.unload_lora()
    model.load_lora_adapter(tmp_path)
    torch.testing.assert_close(velocity(model), expected, rtol=1e-4, atol=1e-5)


def test_hotswap_also_checks_the_second_file(model: WanTransformer3DModel, lora: Path) -> None:
    first = prefixed(load_file(lora))
    model.load_lora_adapter(first, adapter_name="a")
    second = {key: value * 2 for key, value in first.items()}
    expected = velocity(model)
    with pytest.raises(ValueError, match="do not start with 'transformer.'"):
        model.load_lora_adapter(prefixed(load_file(lora), "diffusion_model."), hotswap=True, adapter_name="a")
    assert torch.equal(velocity(model), expected)
    model.load_lora_adapter(second, hotswap=True, adapter_name="a")
    assert not torch.equal(velocity(model), expected)


# --- LoRA files that do not fit the model -----------------------------------------------------------------------------

BLOCK = "transformer.blocks.9.attn1.to_q.lora_"
Q = "transformer.blocks.1.attn1.to_q.lora_"


def kohya(state: State) -> State:
    return {
        "lora_unet_" + key[: key.index(".lora_")].replace(".", "_") + key[key.index(".lora_") :].replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value
        for key, value in wan_names(state).items()
    }  # fmt: skip


MISFITS: dict[str, tuple[Callable[[State], State], str | None, str]] = {
    # no key of the file fits
    "ComfyUI": (lambda s: prefixed(wan_names(s), "diffusion_model."), "transformer", "20 of its 20 keys .as diffusion_model.*, Wan's own names, as ComfyUI writes them. do not start with 'transformer.'"),
    "kohya": (kohya, "transformer", "the names of kohya-ss and musubi-tuner"),
    "no prefix": (lambda s: s, "transformer", "do not start with 'transformer.'; give prefix=None"),
    "Wan's names after the prefix": (lambda s: prefixed(wan_names(s)), "transformer", "do not name a part of a LoRA and a layer"),
    "Wan's bare names": (wan_names, None, "blocks.0.(self|cross)_attn.o.lora_A.weight. do not name a part"),
    "ComfyUI without a prefix": (lambda s: prefixed(wan_names(s), "diffusion_model."), None, "Wan's own names"),
    "kohya's parts": (lambda s: {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in prefixed(s).items()}, "transformer", "do not name a part of a LoRA"),
    "peft": (lambda s: prefixed(s, "base_model.model."), "transformer", "the names of a saved peft model"),
    "another prefix": (lambda s: prefixed(s, "unet."), "transformer", "expected keys like transformer.blocks.0.attn1.to_q.lora_A.weight"),
    "an empty file": (lambda s: {}, "transformer", "the file holds no tensors"),
    "complete weights": (lambda s: {"transformer.proj_out.weight": torch.ones(16, 32)}, "transformer", "1 of its 1 keys .as transformer.proj|as proj_out.weight"),
    # some keys of the file fit
    "keys of a text encoder": (lambda s: {**prefixed(s), "text_encoder.layer.lora_A.weight": torch.ones(2, 2)}, "transformer", "1 of its 21 keys .as text_encoder.layer"),
    "a block that does not exist": (lambda s: {**prefixed(s), BLOCK + "A.weight": torch.ones(2, 32), BLOCK + "B.weight": torch.ones(32, 2)}, "transformer", "2 of its 22 keys .as blocks.9.attn1.to_q.lora_A"),
    "alpha": (lambda s: {**prefixed(s), "transformer.blocks.0.attn1.to_q.alpha": torch.tensor(8.0)}, "transformer", "as blocks.0.attn1.to_q.alpha"),
    "diff": (lambda s: {**prefixed(s), "transformer.blocks.0.norm2.diff": torch.ones(32)}, "transformer", "as blocks.0.norm2.diff"),
    "matrix B is missing": (lambda s: {k: v for k, v in prefixed(s).items() if k != Q + "B.weight"}, "transformer", "blocks.1.attn1.to_q.lora_B.weight is missing"),
    "matrix A is missing": (lambda s: {k: v for k, v in prefixed(s).items() if k != Q + "A.weight"}, "transformer", "blocks.1.attn1.to_q.lora_A.weight is missing"),
    "another width": (lambda s: {**prefixed(s), Q + "A.weight": torch.ones(2, 33)}, "transformer", r"blocks.1.attn1.to_q has factors A \(2, 33\) and B \(32, 2\); its weight has shape \(32, 32\)"),
    "different ranks": (lambda s: {**prefixed(s), Q + "A.weight": torch.ones(3, 32)}, "transformer", r"A \(3, 32\) and B \(32, 2\)"),
    "no matrix": (lambda s: {**prefixed(s), Q + "A.weight": torch.ones(2)}, "transformer", r"A \(2,\)"),
    "LoKr": (lambda s: {"transformer.blocks.0.attn1.to_q.lokr_w1": torch.ones(2, 2)}, "transformer", "do not name a part of a LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_lora_file_that_does_not_fit_is_rejected(
    name: str, model: WanTransformer3DModel, lora: Path, tmp_path: Path
) -> None:
    change, prefix, message = MISFITS[name]
    before, state = velocity(model), change(load_file(lora))
    save_file(state, tmp_path / "foreign.safetensors")
    for given, source in ((state, "the LoRA"), (tmp_path / "foreign.safetensors", "foreign.safetensors")):
        with pytest.raises(ValueError, match=f"{source} does not fit .*Wan.*: .*({message})"):
            model.load_lora_adapter(given, prefix=prefix)
    assert torch.equal(velocity(model), before)
    assert not any("lora" in key for key in model.state_dict())
    model.load_lora_adapter(prefixed(load_file(lora)))  # after the error, another file can be loaded
    assert not torch.equal(velocity(model), before)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_lora_file_is_named(content: bytes, model: WanTransformer3DModel, tmp_path: Path) -> None:
    for name in ("cut.safetensors", "cut.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a LoRA file"):
            model.load_lora_adapter(tmp_path / name)
    with pytest.raises(ValueError, match=r"nowhere.safetensors does not exist"):
        model.load_lora_adapter(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"nowhere.safetensors does not exist"):
        model.load_lora_adapter("nowhere.safetensors")


# --- pipelines with LoRA adapters -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(vae_config: dict[str, Any]) -> Any:
    return build_vae(vae_config, seed=0).eval()


def pipeline_with(transformer: WanTransformer3DModel, vae: Any) -> CausVidPipeline:
    steps = {"solver_steps": 4, "shift": 3.0, "denoising_timesteps": [1000, 750, 500]}
    pipeline = CausVidPipeline(vae=vae, transformer=transformer, **steps)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: CausVidPipeline) -> torch.Tensor:
    text = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    shape = VideoShape(height=32, width=32, frames=13, fps=8)
    return pipeline(text, shape, [torch.Generator().manual_seed(1)], few_steps=True)


@pytest.mark.parametrize("way", ["made", "set", "registered", "loaded"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_method_of_a_pipeline_raises_an_error_if_nothing_is_loaded(
    way: str, causal: bool, transformer_config: dict[str, Any], vae: Any, lora: Path, tmp_path: Path
) -> None:
    """The check also applies to a transformer of diffusers' own class, and to one that diffusers loaded."""

    def plain() -> WanTransformer3DModel:
        made = build_transformer(transformer_config, seed=0)
        return as_causal(made, 2) if causal else made

    pipeline = pipeline_with(plain(), vae)
    if way == "set":
        pipeline.transformer = plain()
    if way == "registered":
        pipeline.register_modules(transformer=plain())
    if way == "loaded":
        pipeline.save_pretrained(tmp_path)
        pipeline = CausVidPipeline.from_pretrained(tmp_path)
        pipeline.set_progress_bar_config(disable=True)
    foreign = prefixed(wan_names(load_file(lora)), "diffusion_model.")
    before = generate(pipeline)
    with pytest.raises(ValueError, match="Wan's own names, as ComfyUI writes them"):
        pipeline.transformer.load_lora_adapter(foreign)
    assert torch.equal(generate(pipeline), before)
    pipeline.transformer.load_lora_adapter(lora, prefix=None)
    assert not torch.equal(generate(pipeline), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("steps", ["loaded", "second not fused", "disabled", "unfused"])
def test_a_pipeline_with_an_adapter_is_not_saved(
    steps: str, model: WanTransformer3DModel, vae: Any, lora: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_with(model, vae)
    model.load_lora_adapter(lora, prefix=None, adapter_name="mine")
    if steps == "second not fused":
        model.load_lora_adapter(lora, prefix=None, adapter_name="other")
        model.set_adapters(["mine", "other"])
        model.fuse_lora(adapter_names=["mine"])
    if steps == "disabled":
        model.fuse_lora()
        model.disable_lora()
    if steps == "unfused":
        model.fuse_lora()
        model.unfuse_lora()
    with pytest.raises(
        ValueError, match=r"LoRA adapters mine.*, and not all are fused into its weights; call transformer.fuse_"
    ):
        pipeline.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert pipeline.transformer is model


@pytest.mark.parametrize("unloads", [False, True])
def test_a_fused_adapter_is_saved_as_plain_weights(
    unloads: bool, model: WanTransformer3DModel, vae: Any, lora: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_with(model, vae)
    before = generate(pipeline)
    model.load_lora_adapter(lora, prefix=None)
    model.fuse_lora()
    if unloads:
        model.unload_lora()
    expected = generate(pipeline)
    pipeline.save_pretrained(tmp_path / "out")
    assert pipeline.transformer is model
    again = CausVidPipeline.from_pretrained(tmp_path / "out")
    again.set_progress_bar_config(disable=True)
    assert (generate(again).int() - expected.int()).abs().max() <= 1  # largest error in 255 levels
    assert (expected.int() - before.int()).abs().max() > 1
    saved = again.transformer.state_dict()
    weights = {key.replace(".base_layer.", "."): value for key, value in model.state_dict().items()}
    assert all(torch.equal(value, weights[key]) for key, value in saved.items())
    assert type(load_transformer(tmp_path / "out" / "transformer")) is type(model)
    assert without_fused_adapters(again.transformer) is again.transformer


def test_a_folder_that_was_saved_with_an_adapter_is_rejected(
    model: WanTransformer3DModel, vae: Any, lora: Path, tmp_path: Path
) -> None:
    """``save_pretrained`` of diffusers writes such a folder without a warning."""
    pipeline_with(model, vae).save_pretrained(tmp_path)
    model.load_lora_adapter(lora, prefix=None)
    model.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match=r"was saved with a LoRA adapter on the model .*save it again after fuse_lora"):
        load_transformer(tmp_path / "transformer")
    with pytest.raises(ValueError, match="the transformer has no weights blocks.*saved with a LoRA"):
        CausVidPipeline.from_pretrained(tmp_path)
