"""All code reads the weight files that ``from_pretrained`` reads, and rejects files of different saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from causvid.interop.original_checkpoint import export_checkpoint, load_generator
from causvid.wan.formats.weight_files import diffusers_files, load_saved
from causvid.wan.text_encoder import build_text_encoder, build_tokenizer, load_text_encoder, save_text_encoder
from causvid.wan.transformer.wan import build_transformer, load_transformer
from causvid.wan.vae.vae import build_vae, load_vae

SINGLE, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
TEXT = {"d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 32, "num_layers": 2, "feed_forward_proj": "gated-gelu"}
SHARDS = {"max_shard_size": "20KB"}
PICKLED = {"safe_serialization": False}
FLOAT32 = torch.float32


@pytest.fixture
def model(transformer_config: dict[str, Any]) -> WanTransformer3DModel:
    return build_transformer(transformer_config, seed=0)


def mark(model: torch.nn.Module, value: float) -> None:
    """Set proj_out.bias to ``value``, so that a test recognises the save."""
    with torch.no_grad():
        model.proj_out.bias.fill_(value)  # type: ignore[union-attr, operator]


def saves(folder: Path, model: WanTransformer3DModel, *how: dict[str, Any]) -> None:
    """Save models with the marks 1, 2, … to one folder. Each save has its own arguments in ``how``."""
    for number, options in enumerate(how, start=1):
        mark(model, number)
        model.save_pretrained(folder, **options)


def exported(folder: Path, tmp_path: Path) -> float:
    export_checkpoint(folder, tmp_path / "out.pt")
    state = torch.load(tmp_path / "out.pt", weights_only=True)["generator"]
    return float(state["model.head.head.bias"].mean())


# --- several saves in one folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "read"),
    [
        ([{}, SHARDS], 2),  # a single file is saved first, and then shards with an index
        ([SHARDS, {"max_shard_size": "40KB"}], 2),
        ([{}, SHARDS, {"max_shard_size": "40KB"}], 3),
        ([PICKLED, {}], 2),
        ([{}, PICKLED], 1),  # from_pretrained prefers a safetensors file, even if the safetensors file is older
        ([PICKLED], 1),
        ([{"variant": "fp16"}, {}], 2),
        ([{}, {"variant": "ema"}], 1),
        ([{"variant": "fp16", **SHARDS}, SHARDS], 2),
        ([{**SHARDS, **PICKLED}, {}], 2),
    ],
    ids=str,
)
def test_export_and_loading_read_the_files_of_from_pretrained(
    how: list[dict[str, Any]], read: int, model: WanTransformer3DModel, tmp_path: Path
) -> None:
    saves(tmp_path / "m", model, *how)
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "m").proj_out.bias
    assert theirs.mean().item() == read
    assert torch.equal(load_transformer(tmp_path / "m").proj_out.bias, theirs)
    assert exported(tmp_path / "m", tmp_path) == read


def test_an_export_equals_the_model_of_the_index_bit_for_bit(model: WanTransformer3DModel, tmp_path: Path) -> None:
    stale = load_state(model, tmp_path / "m")
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    model.bfloat16().save_pretrained(tmp_path / "m", **SHARDS)
    export_checkpoint(tmp_path / "m", tmp_path / "out.pt")
    again = load_generator(tmp_path / "out.pt", num_attention_heads=2, frames_per_block=1, causal=False).state_dict()
    assert all(torch.equal(again[key], value.float()) for key, value in model.state_dict().items())
    assert not any(torch.equal(again[key], value) for key, value in stale.items() if value.std() > 0)


def load_state(model: WanTransformer3DModel, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / SINGLE)


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("diffusion_pytorch_model-*.safetensors"))[number]


def older_shard(folder: Path, model: WanTransformer3DModel) -> None:
    """Replace a shard by a shard of another save that contains other tensors."""
    model.save_pretrained(folder.parent / "old", max_shard_size="40KB")
    shutil.copy(shard(folder.parent / "old", 0), shard(folder, 0))


def lose_a_tensor(folder: Path, _model: WanTransformer3DModel) -> None:
    file = shard(folder, 1)
    state = load_file(file)
    state.pop(min(state))
    save_file(state, file)


def keep_a_tensor_twice(folder: Path, _model: WanTransformer3DModel) -> None:
    file = shard(folder, 1)
    save_file({**load_file(file), **dict(list(load_file(shard(folder, 0)).items())[:1])}, file)


def cut(folder: Path, _model: WanTransformer3DModel) -> None:
    file = shard(folder, -1)
    file.write_bytes(file.read_bytes()[:-10])


def write_index(content: Any) -> Callable[[Path, WanTransformer3DModel], None]:
    return lambda folder, _model: (folder / INDEX).write_text(json.dumps(content))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder, model: model.save_pretrained(folder),
            rf"not found in .*left over.*to use {SINGLE}, delete the",
        ),
        (lambda folder, _: shard(folder, 2).unlink(), r"index.json names .*-00003-of-\d+.safetensors, not found in"),
        (older_shard, r"-00001-of-.* and .*index.json disagree about .*belong to different saves"),
        (lose_a_tensor, r"-00002-of-.*disagree about"),
        (keep_a_tensor_twice, r"-00002-of-.*disagree about"),
        (cut, r"safetensors is cut short"),
        (write_index({"weight_map": {"x": "../elsewhere.safetensors"}}), "a shard must be in the folder of its index"),
        (write_index({"weights": {}}), r"index.json is damaged"),
        (write_index([1]), r"index.json is damaged"),
    ],
)
def test_shards_of_different_saves_are_rejected(
    change: Callable[[Path, WanTransformer3DModel], None], message: str, model: WanTransformer3DModel, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    saves(folder, model, SHARDS)
    change(folder, model)
    for read in (load_transformer, lambda f: export_checkpoint(f, tmp_path / "out.pt")):
        with pytest.raises(ValueError, match=message) as error:
            read(folder)
        assert str(folder) in str(error.value)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"variant": "fp16"}, r"of the variant 'fp16'; save the model without a variant"),
        ({"variant": "ema", **SHARDS}, "of the variant 'ema'"),
        ({**SHARDS, **PICKLED}, r"these are pickled shards; save the model again as safetensors"),
    ],
    ids=str,
)
def test_weights_that_from_pretrained_does_not_read_are_named(
    how: dict[str, Any], message: str, model: WanTransformer3DModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, **how)
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model.bin"):
        WanTransformer3DModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_transformer(tmp_path)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(tmp_path, tmp_path / "out.pt")


def test_other_files_instead_of_weights_are_named(model: WanTransformer3DModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m", **SHARDS)
    (tmp_path / "m" / INDEX).unlink()
    with pytest.raises(ValueError, match="these are shards without their index"):
        diffusers_files(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"empty holds no weights; expected {SINGLE}, or shards with"):
        diffusers_files(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="this is a LoRA adapter, not a whole model"):
        diffusers_files(tmp_path / "empty")


# --- weight files of the VAE and the text encoder ---------------------------------------------------------------------


def test_a_vae_is_read_by_its_index(vae_config: dict[str, Any], tmp_path: Path) -> None:
    vae = build_vae(vae_config, seed=0)
    vae.save_pretrained(tmp_path)
    with torch.no_grad():
        vae.quant_conv.bias += 7
    vae.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / SINGLE).is_file()
    assert torch.equal(load_vae(tmp_path).quant_conv.bias, vae.quant_conv.bias)
    vae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="left over from an earlier save"):
        load_vae(tmp_path)


@pytest.mark.parametrize("key", ["decoder.conv_in.weight", "quant_conv.bias"])
def test_a_vae_with_missing_weights_is_rejected(key: str, vae_config: dict[str, Any], tmp_path: Path) -> None:
    build_vae(vae_config, seed=0).save_pretrained(tmp_path)
    state = load_file(tmp_path / SINGLE)
    del state[key]
    save_file(state, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=f"lacks the weights {key}, which"):
        load_vae(tmp_path)
    save_file(dict(state), tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / SINGLE).unlink()
    with pytest.raises(ValueError, match="of the variant 'fp16'"):
        load_vae(tmp_path)


def test_a_folder_of_another_model_is_not_loaded_as_a_vae(model: WanTransformer3DModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names the class WanTransformer3DModel; expected one of AutoencoderKLWan"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        load_vae(tmp_path)


def test_weights_that_the_model_does_not_have_are_rejected(model: WanTransformer3DModel, tmp_path: Path) -> None:
    """If the config has fewer layers than the file, diffusers would drop layers with no more than a warning."""
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 1}))
    with pytest.raises(
        ValueError, match=r"has the weights blocks.1.* and 24 more, which a model with its config.json does not have"
    ):
        load_transformer(tmp_path)


@pytest.fixture
def text(tmp_path: Path) -> tuple[Any, Any, Path]:
    tokenizer = build_tokenizer(["a red circle"])
    encoder = build_text_encoder(TEXT, len(tokenizer), seed=0)
    save_text_encoder(encoder, tokenizer, tmp_path)
    return encoder, tokenizer, tmp_path / "text_encoder"


def load_text(folder: Path) -> torch.Tensor:
    encoder, _ = load_text_encoder(folder, folder.parent / "tokenizer", FLOAT32)
    weight: torch.Tensor = encoder.shared.weight
    return weight


def test_a_text_encoder_that_was_saved_twice_is_rejected(text: tuple[Any, Any, Path]) -> None:
    """transformers would read the single file, even if the shards are newer. Which save is newer is unknown."""
    encoder, _, folder = text
    with torch.no_grad():
        encoder.shared.weight += 7
    encoder.save_pretrained(folder, max_shard_size="2KB")
    both = r"holds both model.safetensors and model.safetensors.index.json; .*left over from an earlier save: delete"
    with pytest.raises(ValueError, match=both):
        load_text(folder)
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_text(folder), encoder.shared.weight)
    encoder.save_pretrained(folder)  # the save deletes the shards, but not the index
    with pytest.raises(ValueError, match=both):
        load_text(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert torch.equal(load_text(folder), encoder.shared.weight)


def test_a_text_encoder_with_missing_weights_is_rejected(text: tuple[Any, Any, Path]) -> None:
    encoder, _, folder = text
    file, key = folder / "model.safetensors", "encoder.block.0.layer.0.SelfAttention.q.weight"
    state = load_file(file)
    torch.save(state, folder / "pytorch_model.bin")
    file.unlink()
    assert torch.equal(load_text(folder), encoder.shared.weight)
    (folder / "pytorch_model.bin").unlink()
    save_file({name: value for name, value in state.items() if name != key}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"text_encoder lacks the weights {key}, which"):
        load_text(folder)
    file.rename(folder / "model.fp16.safetensors")
    with pytest.raises(ValueError, match="of the variant 'fp16'"):
        load_text(folder)
    encoder.save_pretrained(folder, max_shard_size="2KB")
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    kept = load_file(last)
    kept.pop(min(kept))
    save_file(kept, last, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{last.name} and model.safetensors.index.json disagree"):
        load_text(folder)


def test_a_loaded_model_has_no_local_path(
    model: WanTransformer3DModel, vae_config: dict[str, Any], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "m")
    build_vae(vae_config, 0).save_pretrained(tmp_path / "v")
    for cls, name in ((WanTransformer3DModel, "m"), (AutoencoderKLWan, "v")):
        load_saved(cls, tmp_path / name, FLOAT32).save_pretrained(tmp_path / "again")
        assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
