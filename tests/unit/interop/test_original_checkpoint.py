"""Import and export of original CausVid checkpoints keep all keys and values, and invalid files raise clear errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from causvid.interop import original_checkpoint as original
from causvid.wan.released_names import rename
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import load_transformer

HEADS, BLOCK = 2, 3
WIDTH, FFN, TEXT, FREQ, CHANNELS, LAYERS = 24, 40, 20, 16, 4, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, WIDTH))
        self.self_attn = Attention()
        self.norm3 = nn.LayerNorm(WIDTH)
        self.cross_attn = Attention()
        self.ffn = nn.Sequential(nn.Linear(WIDTH, FFN), nn.GELU(), nn.Linear(FFN, WIDTH))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, WIDTH))
        self.head = nn.Linear(WIDTH, CHANNELS * 4)


class Wan(nn.Module):
    """A module without a forward pass. The weights have the names and shapes of Wan's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(TEXT, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.time_embedding = nn.Sequential(nn.Linear(FREQ, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = Head()


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = Wan().state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator).to(dtype) for key, value in state.items()}


def prefixed(state: dict[str, torch.Tensor], prefix: str = "model.") -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two state dicts have equal keys in equal order, equal dtypes and equal bits."""
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key].view(torch.uint8), other[key].view(torch.uint8))
        for key in one
    )


def load(path: Path, **changes: Any) -> CausalWanTransformer3DModel:
    arguments: dict[str, Any] = {"num_attention_heads": HEADS, "frames_per_block": BLOCK, **changes}
    model = original.load_generator(path, **arguments)
    assert isinstance(model, CausalWanTransformer3DModel)
    return model


FILES: dict[str, Any] = {
    "generator": lambda: {"generator": prefixed(weights(1))},
    "generator and critic": lambda: {"generator": prefixed(weights(1)), "critic": prefixed(weights(2))},
    "no prefix": lambda: {"generator": weights(1)},
    "bare": lambda: prefixed(weights(1)),
    "bare, no prefix, bfloat16": lambda: weights(1, torch.bfloat16),
}


@pytest.mark.parametrize("name", FILES)
def test_export_restores_an_imported_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    content = FILES[name]()
    torch.save(content, tmp_path / "model.pt")
    original.import_checkpoint(
        tmp_path / "model.pt", tmp_path / "ours", num_attention_heads=HEADS, frames_per_block=BLOCK
    )
    original.export_checkpoint(tmp_path / "ours", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    sections = ["generator", "critic"] if "critic" in content else ["generator"]
    pairs = [(content[s], again[s]) for s in sections] if "generator" in content else [(content, again)]
    assert list(again) == list(content)
    assert all(same(before, after) for before, after in pairs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pt", "model.pt", "ours"]


def test_export_restores_an_imported_safetensors_file(tmp_path: Path) -> None:
    save_file(prefixed(weights(1)), tmp_path / "model.safetensors")
    original.import_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "ours", num_attention_heads=HEADS, frames_per_block=BLOCK
    )
    original.export_checkpoint(tmp_path / "ours", tmp_path / "again.safetensors")
    before, after = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "again.safetensors")
    assert same(dict(sorted(before.items())), dict(sorted(after.items())))


def test_stages_can_load_an_imported_folder(tmp_path: Path) -> None:
    torch.save(FILES["generator and critic"](), tmp_path / "model.pt")
    original.import_checkpoint(tmp_path / "model.pt", tmp_path / "ours", num_attention_heads=HEADS, frames_per_block=2)
    student, critic = load_transformer(tmp_path / "ours"), load_transformer(tmp_path / "ours" / "critic")
    assert isinstance(student, CausalWanTransformer3DModel)
    assert student.config.frames_per_block == 2
    assert not isinstance(critic, CausalWanTransformer3DModel)
    assert torch.equal(student.blocks[1].attn1.to_out[0].bias, weights(1)["blocks.1.self_attn.o.bias"])
    assert torch.equal(critic.blocks[0].norm2.weight, weights(2)["blocks.0.norm3.weight"])


def test_a_student_of_this_project_is_exported_in_the_original_causvid_layout(tmp_path: Path) -> None:
    torch.save(FILES["generator"](), tmp_path / "model.pt")
    student = load(tmp_path / "model.pt")
    student.save_pretrained(tmp_path / "ours")
    original.export_checkpoint(tmp_path / "ours", tmp_path / "new" / "out.pt")
    assert same(torch.load(tmp_path / "new" / "out.pt", weights_only=True)["generator"], prefixed(weights(1)))
    assert torch.equal(load(tmp_path / "new" / "out.pt").proj_out.weight, student.proj_out.weight)


def test_load_generator_returns_a_bidirectional_model(tmp_path: Path) -> None:
    torch.save(FILES["bare"](), tmp_path / "model.pt")
    model = original.load_generator(
        tmp_path / "model.pt", num_attention_heads=HEADS, frames_per_block=BLOCK, causal=False
    )
    assert type(model).__name__ == "WanTransformer3DModel"
    assert not model.training
    video, text = torch.randn(1, CHANNELS, 3, 4, 6), torch.randn(1, 5, TEXT)
    assert model(video, torch.tensor([500.0]), text, return_dict=False)[0].shape == video.shape


def test_the_format_of_torch_before_zip_files_is_read(tmp_path: Path) -> None:
    torch.save(FILES["generator"](), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "model.pt").proj_out.bias, weights(1)["head.head.bias"])


# --- errors for invalid checkpoints -----------------------------------------------------------------------------------


def change(key: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = weights(1)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: change("blocks.1.ffn.2.bias", None), "generator: .*missing blocks.1.ffn.2.bias"),
        (lambda: change("patch_embedding.weight", None), "missing patch_embedding.weight"),
        (lambda: change("blocks.0.self_attn.lora_A", torch.ones(1)), "unknown blocks.0.self_attn.lora_A"),
        (lambda: change("blocks.7.modulation", torch.ones(1, 6, WIDTH)), "unknown blocks.7.modulation"),
        (
            lambda: change("blocks.0.cross_attn.q.weight", torch.ones(WIDTH, WIDTH + 1)),
            r"blocks.0.cross_attn.q.weight has shape \(24, 25\), expected \(24, 24\)",
        ),
        (lambda: {**weights(1), "model.head.head.bias": torch.ones(1)}, "does not start with 'model.'"),
        (lambda: {"generator_ema": weights(1)}, "entries generator_ema; expected generator"),
        (lambda: {"critic": weights(1)}, "entries critic; expected generator"),
        (lambda: {"generator": [1, 2]}, "generator is a list"),
        (lambda: {"generator": {**weights(1), "step": 3}}, "'step' of type int; expected a floating-point tensor"),
        (lambda: {"generator": {**weights(1), "ids": torch.ones(3, dtype=torch.long)}}, "'ids' of type torch.int64"),
        (lambda: {"generator": {**weights(1), "x": torch.eye(3).to_sparse()}}, "'x' in the layout torch.sparse_coo"),
        (lambda: {}, "entries none"),
        (lambda: [weights(1)], "contains a list; expected a dict"),
        (lambda: {"generator": Path("/etc")}, "not a checkpoint that contains only tensors"),
    ],
)
def test_an_invalid_file_raises_an_error_with_its_path(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in str(error.value)


@pytest.mark.parametrize(
    ("heads", "message"), [(5, "num_attention_heads is 5; it must divide the width 24"), (0, "is 0"), (8, "even")]
)
def test_a_number_of_heads_that_does_not_divide_the_width_is_an_error(heads: int, message: str, tmp_path: Path) -> None:
    torch.save(FILES["generator"](), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model.pt", num_attention_heads=heads)


def test_a_failed_import_leaves_no_file_and_no_folder_is_overwritten(tmp_path: Path) -> None:
    torch.save({"generator": weights(1), "critic": change("head.modulation", None)}, tmp_path / "model.pt")
    arguments: dict[str, Any] = {"num_attention_heads": HEADS, "frames_per_block": BLOCK}
    with pytest.raises(ValueError, match="critic: .*missing head.modulation"):
        original.import_checkpoint(tmp_path / "model.pt", tmp_path / "ours", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    (tmp_path / "ours").mkdir()
    with pytest.raises(FileExistsError, match="ours exists"):
        original.import_checkpoint(tmp_path / "model.pt", tmp_path / "ours", **arguments)


def test_export_rejects_unknown_missing_and_truncated_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no diffusers transformer"):
        original.export_checkpoint(tmp_path, tmp_path / "out.pt")
    torch.save(FILES["generator"](), tmp_path / "model.pt")
    load(tmp_path / "model.pt").save_pretrained(tmp_path / "ours")
    file = tmp_path / "ours" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({**state, "blocks.0.attn2.add_k_proj.weight": torch.ones(1)}, file)
    with pytest.raises(
        ValueError, match=r"has the weight blocks.0.attn2.add_k_proj.weight, which a released checkpoint cannot"
    ):
        original.export_checkpoint(tmp_path / "ours", tmp_path / "out.pt")
    save_file({key: value for key, value in state.items() if not key.startswith("blocks.0.")}, file)
    with pytest.raises(ValueError, match=r"lacks the weights blocks.0.scale_shift_table and 26 more"):
        original.export_checkpoint(tmp_path / "ours", tmp_path / "out.pt")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors is truncated"):
        original.export_checkpoint(tmp_path / "ours", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_export_overwrites_no_file(tmp_path: Path) -> None:
    torch.save(FILES["generator"](), tmp_path / "model.pt")
    load(tmp_path / "model.pt").save_pretrained(tmp_path / "ours")
    for there in ("model.pt", "ours"):
        with pytest.raises(FileExistsError, match=f"{there} exists"):
            original.export_checkpoint(tmp_path / "ours", tmp_path / there)
    with pytest.raises(ValueError, match=r"must end in .pt or .safetensors"):
        original.export_checkpoint(tmp_path / "ours", tmp_path / "results")


def test_tensors_that_share_memory_are_cloned(tmp_path: Path) -> None:
    state = weights(1)
    state["blocks.1.norm3.bias"] = state["blocks.0.norm3.bias"]
    torch.save({"generator": state}, tmp_path / "model.pt")
    original.import_checkpoint(
        tmp_path / "model.pt", tmp_path / "ours", num_attention_heads=HEADS, frames_per_block=BLOCK
    )
    original.export_checkpoint(tmp_path / "ours", tmp_path / "again.pt")
    assert same(torch.load(tmp_path / "again.pt", weights_only=True)["generator"], state)


def test_zero_frames_per_block_is_an_error(tmp_path: Path) -> None:
    torch.save(FILES["generator"](), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="frames_per_block is 0; a block must have at least 1"):
        load(tmp_path / "model.pt", frames_per_block=0)


def test_the_commands_import_and_export(tmp_path: Path) -> None:
    torch.save(FILES["generator"](), tmp_path / "model.pt")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "causvid.interop.original_checkpoint", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    heads = ("--num-attention-heads", str(HEADS), "--frames-per-block", "3")
    done = run("import", str(tmp_path / "model.pt"), str(tmp_path / "ours"), *heads)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["frames_per_block"] == 3
    assert run("export", str(tmp_path / "ours"), str(tmp_path / "out.pt")).returncode == 0
    assert same(torch.load(tmp_path / "out.pt", weights_only=True)["generator"], prefixed(weights(1)))
    again = run("import", str(tmp_path / "model.pt"), str(tmp_path / "ours"), *heads)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "exists" in again.stderr


# --- random damage to checkpoints -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(FILES["generator and critic"](), folder / "model.pt")
    save_file(prefixed(weights(1)), folder / "model.safetensors")
    return folder


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_raises_an_error_or_gives_the_right_weights(data: st.DataObject, intact: Path) -> None:
    """The damage is a truncation at any byte, or one key that is renamed, removed, added or changed in shape."""
    expected = weights(1)
    kind = data.draw(st.sampled_from(["cut", "rename", "drop", "add", "shape"]))
    if kind == "cut":
        source = intact / data.draw(st.sampled_from(["model.pt", "model.safetensors"]))
        content = source.read_bytes()
        path = intact / f"cut{source.suffix}"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        harmless = path.stat().st_size == len(content)
    else:
        path, state = intact / "changed.pt", weights(1)
        key = data.draw(st.sampled_from(sorted(state)))
        value = state[key]
        if kind in ("rename", "drop"):
            del state[key]
        if kind == "rename":
            state[data.draw(st.text(min_size=1, max_size=40))] = value
        if kind == "add":
            state[data.draw(st.text(min_size=1, max_size=40))] = value
        if kind == "shape":
            sizes = st.lists(st.integers(0, 30), min_size=0, max_size=5)
            state[key] = torch.ones(data.draw(sizes))
        harmless = state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)
        torch.save({"generator": state}, path)
    if not harmless:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load(path)
        return
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[rename(key) or ""], value) for key, value in expected.items())
