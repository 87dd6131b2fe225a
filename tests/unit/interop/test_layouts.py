"""Errors for checkpoints of related projects name the unsupported layout and a remedy."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from causvid.generate.command import app as generate_app
from causvid.interop import original_checkpoint as original
from causvid.interop.checkpoint_files import read_file
from causvid.interop.layouts import foreign_folder, require_known_layout
from causvid.wan.released_names import rename
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import build_transformer, load_transformer
from tests.unit.interop.test_original_checkpoint import BLOCK, HEADS, prefixed, same, weights

State = dict[str, torch.Tensor]
INDEX = "diffusion_pytorch_model.safetensors.index.json"
MISLEADING = ("does not exist", "truncated", "to infer the size")


def import_(source: Path, tmp_path: Path) -> str:
    """Return the error message of the import of ``source``. The import must fail and write no file."""
    arguments = ["import", str(source), str(tmp_path / "ours"), "--num-attention-heads", str(HEADS)]
    done = CliRunner().invoke(original.app, arguments)
    assert done.exit_code == 1, done.output
    assert not (tmp_path / "ours").exists()
    assert str(source) in done.output
    assert not any(words in done.output for words in MISLEADING), done.output
    return done.output


# --- entries of a checkpoint file -------------------------------------------------------------------------------------


def state_dicts(*names: str, **others: Any) -> dict[str, Any]:
    return {**{name: prefixed(weights(number)) for number, name in enumerate(names)}, **others}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # checkpoints with entries that the import does not use
        (lambda: state_dicts("generator", "critic", "generator_ema"), "entries critic, generator, generator_ema; expected generator"),
        (lambda: state_dicts("generator_ema"), "torch.save({'generator': torch.load(FILE)['generator_ema']}, 'model.pt')"),
        # training states of other projects
        (lambda: state_dicts("generator", step=100), "; step belong to a training state; save the model in a separate file: torch.save({'generator': torch.load(FILE)['generator']}"),
        (lambda: state_dicts("module", optimizer={"state": {}}, epoch=3), "torch.load(FILE)['module']"),
        (lambda: state_dicts("state_dict", **{"pytorch-lightning_version": "2.4"}), "torch.load(FILE)['state_dict']"),
        (lambda: state_dicts("model", "ema"), "(of model, ema): torch.save({'generator': torch.load(FILE)['model']}"),
        (lambda: {**weights(1), "step": 3}, "generator has 'step' of type int; expected a floating-point tensor"),
        (lambda: {"generator": {"model": weights(1)}}, "generator has 'model' of type dict"),
    ],
)  # fmt: skip
def test_the_error_lists_the_entries_of_a_training_state(
    content: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    torch.save(content(), tmp_path / "model.pt")
    assert message in import_(tmp_path / "model.pt", tmp_path)


def test_the_suggested_command_extracts_one_entry(tmp_path: Path) -> None:
    torch.save(state_dicts("generator", "generator_ema", step=3), tmp_path / "model.pt")
    remedy = import_(tmp_path / "model.pt", tmp_path).split("torch.save", 1)[1]
    assert remedy.strip() == "({'generator': torch.load(FILE)['generator']}, 'model.pt')"
    found = torch.load(tmp_path / "model.pt")
    torch.save({"generator": found["generator_ema"]}, tmp_path / "ema.pt")
    sections, _ = original.read_original(tmp_path / "ema.pt")
    assert same(sections["generator"], weights(1))


# --- prefixes of keys -------------------------------------------------------------------------------------------------


def inside(state: State, mark: str) -> State:
    """Return the state dict of a model in which each block has a wrapper, as FSDP creates with a wrapping policy."""
    return {
        key.replace("blocks.0.", f"blocks.0.{mark}").replace("blocks.1.", f"blocks.1.{mark}"): v
        for key, v in state.items()
    }


KEYS: dict[str, tuple[Callable[[State], State], str]] = {
    # a wrapper around the complete model
    "FSDP": (lambda s: prefixed(s, "_fsdp_wrapped_module."), "'_fsdp_wrapped_module.', for example _fsdp_wrapped_module."),
    "DDP": (lambda s: prefixed(s, "module."), "keys that start with 'module.' (DistributedDataParallel)"),
    "compile": (lambda s: prefixed(s, "_orig_mod."), "the model was wrapped in torch.compile when it was saved"),
    "ComfyUI": (lambda s: prefixed(s, "diffusion_model."), "keys that start with 'diffusion_model.' (ComfyUI)"),
    "ComfyUI with the prefix model": (lambda s: prefixed(s, "model.diffusion_model."), "'diffusion_model.' (ComfyUI)"),
    # wrappers around parts of the model, and nested wrappers
    "FSDP of blocks": (lambda s: prefixed(inside(s, "_fsdp_wrapped_module.")), "FullyShardedDataParallel"),
    "FSDP of model and blocks": (lambda s: prefixed(inside(s, "_fsdp_wrapped_module."), "model._fsdp_wrapped_module."), "FullyShardedDataParallel"),
    "compiled blocks": (lambda s: inside(s, "_orig_mod."), "in torch.compile when it was saved; remove '_orig_mod.' from every key"),
    "checkpointed blocks": (lambda s: inside(s, "_checkpoint_wrapped_module."), "in activation checkpointing"),
    "DDP around a wrapper": (lambda s: prefixed(s, "module.model."), "keys that start with 'module.model.'"),
    "an unknown wrapper": (lambda s: prefixed(s, "student.net."), "keys that start with 'student.net.', for example student.net.time_projection.1.weight; remove the prefix"),
    # checkpoints of other models
    "a VAE": (lambda s: {"encoder.conv1.weight": s["head.head.weight"], "conv2.bias": s["head.head.bias"]}, "but no key of a Wan transformer; pass the file of the transformer"),
    "a LoRA": (lambda s: {f"diffusion_model.{k[:-7]}.lora_A.weight": v for k, v in s.items() if k.endswith("q.weight")}, "the file contains a LoRA adapter, not a complete model"),
    "diffusers' names": (lambda s: {rename(k) or k: v for k, v in s.items()}, "with the key names of diffusers, which needs no import"),
    "image to video": (lambda s: {**s, "img_emb.proj.0.weight": torch.ones(3)}, "the file contains an image-to-video Wan model"),
    "VACE": (lambda s: {**s, "vace_blocks.0.norm3.bias": torch.ones(3)}, "the file contains a VACE model"),
    "fp8 with scales": (lambda s: {**s, "blocks.0.self_attn.q.scale_weight": torch.ones(1)}, "quantised to fp8 with scales"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", KEYS)
def test_the_error_names_the_prefix_or_the_other_model(name: str, suffix: str, tmp_path: Path) -> None:
    change, message = KEYS[name]
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save({"generator": change(weights(1))}, path)
    else:
        save_file(change(weights(1)), path)
    assert message in import_(path, tmp_path)
    with pytest.raises(ValueError, match="model.(pt|safetensors): generator has ([0-9]+ keys|keys|the key)"):
        original.load_generator(path, num_attention_heads=HEADS, frames_per_block=BLOCK)


def test_the_error_names_the_prefix_of_a_critic(tmp_path: Path) -> None:
    torch.save({"generator": weights(1), "critic": prefixed(weights(2), "module.")}, tmp_path / "model.pt")
    assert "critic has keys that start with 'module.'" in import_(tmp_path / "model.pt", tmp_path)


# --- shards, folders, and files that refer to other files -------------------------------------------------------------


def sharded(folder: Path, *, config: dict[str, Any] | None = None, parts: int = 3) -> Path:
    """Write a sharded model with an index and the key names of Wan's code, as in Wan2.1-T2V-14B."""
    folder.mkdir()
    keys, total = sorted(weights(1)), f"{parts:05d}"
    groups = {f"diffusion_pytorch_model-{n + 1:05d}-of-{total}.safetensors": keys[n::parts] for n in range(parts)}
    for name, part in groups.items():
        save_file({key: weights(1)[key] for key in part}, folder / name)
    where = {key: name for name, part in groups.items() for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_folder_index_and_shard_of_a_sharded_model_are_recognised(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "wan")
    assert f"a folder of a sharded checkpoint of 3 files ({INDEX})" in import_(folder, tmp_path)
    assert "is the index of a sharded checkpoint of 3 files; join the shards" in import_(folder / INDEX, tmp_path)
    first = folder / "diffusion_pytorch_model-00001-of-00003.safetensors"
    assert "is shard 1 of 3 of a sharded checkpoint; join the shards" in import_(first, tmp_path)
    pickled = tmp_path / "pytorch_model-00002-of-00007.bin"
    torch.save(weights(1), pickled)
    assert "is shard 2 of 7" in import_(pickled, tmp_path)
    theirs = sharded(tmp_path / "14B", config={"_class_name": "WanModel", "dim": 5120})
    assert "a folder in Wan's own layout (config.json names WanModel), with the model in 3 shards" in import_(
        theirs, tmp_path
    )
    joined = {key: value for file in theirs.glob("*.safetensors") for key, value in load_file(file).items()}
    save_file(joined, tmp_path / "joined.safetensors")  # the error message suggests this command
    sections, _ = original.read_original(tmp_path / "joined.safetensors")
    assert sections["generator"].keys() == weights(1).keys()


def test_a_single_shard_is_a_complete_model(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "wan", parts=1)
    (file,) = folder.glob("*.safetensors")
    sections, _ = original.read_original(file)
    assert sections["generator"].keys() == weights(1).keys()


def folder_with(*names: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "given").mkdir()
        for name in names:
            (root / "given" / name).touch()
        return root / "given"

    return make


def file_of(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).write_bytes(content)
        return root / name

    return make


def diffusers_folder(root: Path) -> Path:
    config = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "ffn_dim": 8, "text_dim": 8}
    build_transformer(config, seed=0).save_pretrained(root / "given")
    return root / "given"


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "torch.distributed": (folder_with("__0_0.distcp", ".metadata"), "dcp_to_torch FOLDER model.pt"),
    "DeepSpeed": (folder_with("zero_to_fp32.py", "latest"), "is a DeepSpeed checkpoint"),
    "a step folder of DeepSpeed": (folder_with("mp_rank_00_model_states.pt"), "is a DeepSpeed checkpoint"),
    "a LoRA": (folder_with("adapter_config.json", "adapter_model.safetensors"), "is a LoRA adapter, not a complete model"),
    "a pipeline": (folder_with("model_index.json"), "is a diffusers pipeline, which needs no import"),
    "diffusers": (diffusers_folder, "diffusers' layout (config.json names WanTransformer3DModel)"),
    "a folder with a checkpoint file": (folder_with("model.pt"), "is a folder; pass the checkpoint file in it"),
    "a Git LFS pointer": (file_of("model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "fetch the file with 'git lfs pull'"),
    "a DVC file": (file_of("model.pt.dvc", b"outs:\n- md5: 0\n  path: model.pt\n"), "fetch the data with 'dvc pull'"),
    "a web page": (file_of("model.safetensors", b"<!DOCTYPE html><html>"), "is a web page, not a checkpoint"),
    "GGUF": (file_of("wan.gguf", b"GGUF\x03\0\0\0"), "in the GGUF format"),
    "a config": (file_of("config.json", b'{"dim": 1536}'), "is a JSON file, not a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_the_error_names_an_unsupported_layout(name: str, tmp_path: Path) -> None:
    make, message = PLACES[name]
    assert message in import_(make(tmp_path), tmp_path)


def test_the_error_names_the_target_of_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "model.pt").symlink_to("blobs/0123")
    with pytest.raises(ValueError, match=r"model.pt is a link to blobs/0123, which does not exist"):
        read_file(tmp_path / "model.pt")


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize("name", ["0123abcd", "model.ckpt", "model.pt"])
def test_the_content_of_a_file_decides_its_format(name: str, save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    """The caches of the hub and of DVC name files by checksums, and suffixes of other files are often wrong."""
    save(prefixed(weights(1)), tmp_path / name)
    sections, _ = original.read_original(tmp_path / name)
    assert same(dict(sorted(sections["generator"].items())), dict(sorted(weights(1).items())))


def test_a_torch_file_with_the_suffix_safetensors_is_an_error(tmp_path: Path) -> None:
    torch.save(weights(1), tmp_path / "model.safetensors")
    assert "is a file of torch.save, not a safetensors file; rename it to model.pt" in import_(
        tmp_path / "model.safetensors", tmp_path
    )


# --- errors of export, generate and training --------------------------------------------------------------------------


def export(source: Path, tmp_path: Path) -> str:
    """Return the error message of the export of ``source``. The export must fail and write no file."""
    done = CliRunner().invoke(original.app, ["export", str(source), str(tmp_path / "out.pt")])
    assert (done.exit_code, (tmp_path / "out.pt").exists()) == (1, False), done.output
    assert str(source) in done.output
    return done.output


def test_export_names_an_unsupported_source(tmp_path: Path) -> None:
    config = {"_class_name": "WanModel"}
    assert "config.json names WanModel" in export(sharded(tmp_path / "14B", config=config), tmp_path)
    assert "a sharded checkpoint of 3 files" in export(sharded(tmp_path / "bare"), tmp_path)
    torch.save(weights(1), tmp_path / "model.pt")
    assert "model.pt is a file; export takes the diffusers folder" in export(tmp_path / "model.pt", tmp_path)
    assert "nowhere does not exist; export takes" in export(tmp_path / "nowhere", tmp_path)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").touch()
    assert f"is a diffusers pipeline; pass its transformer, {tmp_path}/pipeline/tr" in export(
        tmp_path / "pipeline", tmp_path
    )
    vae = folder_with()(tmp_path)
    (vae / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    assert "names the class AutoencoderKLWan; expected one of CausalWan" in export(vae, tmp_path)


def test_generate_names_an_unsupported_checkpoint(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "14B", config={"_class_name": "WanModel"})
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    for given, message in (
        (folder, "config.json names WanModel"),
        (tmp_path / "bare", "a folder of a sharded checkpoint of 3 files"),
        (folder / INDEX, "is the index of a sharded checkpoint of 3 files"),
        (folder / "diffusion_pytorch_model-00003-of-00003.safetensors", "is shard 3 of 3"),
        (PLACES["DeepSpeed"][0](tmp_path), "is a DeepSpeed checkpoint"),
        (PLACES["a Git LFS pointer"][0](tmp_path), "fetch the file with 'git lfs pull'"),
    ):
        arguments = ["--checkpoint", str(given), "--prompt", "x", "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(generate_app, ["generate", *arguments])
        assert done.exit_code == 1
        assert message in done.output
        assert not any(words in done.output for words in MISLEADING)


def test_training_names_a_folder_in_wans_own_layout(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "14B", config={"_class_name": "WanModel"})
    with pytest.raises(
        ValueError, match=r"the class WanModel; expected .*original_checkpoint import' creates such a fo"
    ):
        load_transformer(folder)


def test_supported_layouts_are_accepted(tmp_path: Path) -> None:
    """The check accepts a diffusers folder (also with shards or a LoRA adapter), a file, and a missing path."""
    folder = diffusers_folder(tmp_path)
    (folder / "pytorch_lora_weights.safetensors").touch()
    require_known_layout(folder)
    assert foreign_folder(folder) is None
    load_transformer(folder).save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    require_known_layout(tmp_path / "shards")
    torch.save(weights(1), tmp_path / "model.pt")
    require_known_layout(tmp_path / "model.pt")
    require_known_layout(tmp_path / "nothing there yet")
    model = original.load_generator(tmp_path / "model.pt", num_attention_heads=HEADS, frames_per_block=BLOCK)
    assert isinstance(model, CausalWanTransformer3DModel)


@pytest.mark.parametrize("length", [0x3C, 0x3C20, 0x4F3C, 0x0A3C, 212000])
def test_a_safetensors_header_whose_length_looks_like_text_is_not_a_web_page(tmp_path: Path, length: int) -> None:
    """A safetensors file starts with the length of its header. The bytes of this length may be "<" or whitespace."""
    path = tmp_path / "model.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + struct.pack("<f", 1.5))
    assert read_file(path)["w"].tolist() == [1.5]
