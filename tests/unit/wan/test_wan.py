"""Test that transformers are built, saved, loaded and converted to students."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from causvid.compute.parallel import Checkpointing
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import (
    ATTENTIONS,
    as_causal,
    build_transformer,
    for_training,
    load_transformer,
)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_random_weights_depend_on_the_seed_only(transformer_config: dict[str, Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_transformer(transformer_config, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert equal(first, build_transformer(transformer_config, 0))
    assert not equal(first, build_transformer(transformer_config, 1))


def test_a_folder_is_loaded_with_the_class_in_its_config(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    teacher = build_transformer(transformer_config, 0)
    student = as_causal(teacher, 2)
    for model, name in [(teacher, "teacher"), (student, "student")]:
        model.save_pretrained(tmp_path / name)
        loaded = load_transformer(tmp_path / name)
        assert type(loaded) is type(model)
        assert equal(loaded, model)
        assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
            k: v for k, v in model.config.items() if k[0] != "_"
        }
    assert load_transformer(tmp_path / "student").config.frames_per_block == 2


def test_a_student_has_the_config_of_its_teacher(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    """diffusers drops config keys that ``__init__`` does not list.

    If a key of the config were dropped, diffusers would use the value of the 14B model.
    """
    config = {**transformer_config, "eps": 1e-5, "cross_attn_norm": False, "rope_max_seq_len": 48}
    teacher = build_transformer(config, 0)
    student = as_causal(teacher, 3)
    student.save_pretrained(tmp_path)
    for found in (student, CausalWanTransformer3DModel.from_pretrained(tmp_path)):
        assert {key: found.config[key] for key in config} == config
    assert student.blocks[0].norm1.eps == 1e-5
    assert isinstance(student.blocks[0].norm2, torch.nn.Identity)
    assert student.rope.max_seq_len == 48


def test_bidirectional_and_causal_folders_load_with_the_other_class(
    transformer_config: dict[str, Any], tmp_path: Path
) -> None:
    teacher = build_transformer(transformer_config, 0)
    teacher.save_pretrained(tmp_path / "teacher")
    as_student = CausalWanTransformer3DModel.from_pretrained(tmp_path / "teacher")
    assert equal(as_student, teacher)
    assert as_student.config.frames_per_block == 3  # the default is the value of the original CausVid models
    assert not any(p.is_meta for p in as_student.parameters())
    as_causal(teacher, 2).save_pretrained(tmp_path / "student")
    student_file = tmp_path / "student" / "diffusion_pytorch_model.safetensors"
    assert student_file.read_bytes() == (tmp_path / "teacher" / student_file.name).read_bytes()


def test_some_weights_remain_float32_in_bfloat16(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    as_causal(build_transformer(transformer_config, 0), 2).save_pretrained(tmp_path)
    loaded = load_transformer(tmp_path, torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert loaded.scale_shift_table.dtype == loaded.blocks[0].scale_shift_table.dtype == torch.float32
    assert loaded.rope.freqs_cos.dtype == torch.float32
    cache = loaded.make_kv_cache(batch_size=1, num_frames=2, height=4, width=4)
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_a_folder_without_a_transformer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no transformer \(no config.json\)"):
        load_transformer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    with pytest.raises(ValueError, match="names the class AutoencoderKLWan; expected one of CausalWan.*, Wan"):
        load_transformer(tmp_path)


def test_for_training_sets_training_mode_and_checkpointing(transformer_config: dict[str, Any]) -> None:
    model = for_training(build_transformer(transformer_config, 0).eval(), gradient_checkpointing="full")
    assert model.training
    assert model.gradient_checkpointing
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not for_training(
        build_transformer(transformer_config, 0), gradient_checkpointing="none"
    ).gradient_checkpointing
    assert isinstance(model, WanTransformer3DModel)


class Counted(TorchDispatchMode):
    """Count how often attention and other matrix products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attentions += func in ATTENTIONS
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frames_per_block", [None, 2])
def test_activations_that_the_backward_pass_computes_again(
    transformer_config: dict[str, Any], frames_per_block: int | None
) -> None:
    """The backward pass recomputes all activations ("full") or all but the attention ("selective").

    Gradients are equal bit for bit in all cases.
    """
    x, text = torch.ones(1, 4, 4, 4, 4), torch.ones(1, 5, 8)
    times = torch.full((1,) if frames_per_block is None else (1, 4), 500.0)
    forward, again, gradients = {}, {}, {}
    for kind in get_args(Checkpointing):
        teacher = build_transformer(transformer_config, 0)
        model = teacher if frames_per_block is None else as_causal(teacher, frames_per_block)
        model = for_training(model, gradient_checkpointing=kind)
        with Counted() as first:
            out = model(x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]
        with Counted() as second:
            out.square().mean().backward()
        forward[kind], again[kind] = first, second
        gradients[kind] = [parameter.grad for parameter in model.parameters()]
    assert again["none"].attentions == again["selective"].attentions == 0
    assert again["full"].attentions == forward["full"].attentions > 0
    assert again["selective"].products == again["full"].products > again["none"].products
    for found in zip(*gradients.values(), strict=True):
        plain, *others = (torch.zeros(0) if gradient is None else gradient for gradient in found)
        assert plain.abs().max() > 0
        assert all(torch.equal(other, plain) for other in others)


def test_the_student_names_its_blocks_for_other_tools(transformer_config: dict[str, Any]) -> None:
    """Compilation, sharding and device maps use the module names.

    Context parallelism does not support causal attention.
    """
    student = as_causal(build_transformer(transformer_config, 0), 2)
    name = type(student.blocks[0]).__name__
    assert student._repeated_blocks == student._no_split_modules == [name]
    assert student._cp_plan is None


def test_a_saved_config_has_no_local_path(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("here", "there"):
        build_transformer(transformer_config, 0).save_pretrained(tmp_path / folder)
        load_transformer(tmp_path / folder).save_pretrained(tmp_path / f"{folder}_again")
    saved = [(tmp_path / f"{folder}_again" / "config.json").read_text() for folder in ("here", "there")]
    assert saved[0] == saved[1]


def test_missing_weights_are_named(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    build_transformer(transformer_config, 0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks the weights blocks.2.attn1.norm_k.weight, .* and 24 more"):
        load_transformer(tmp_path)


def test_processes_of_a_machine_share_loaded_weights(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    """Loaded weights are mapped from their file, also in a causal student, and use no private memory.

    Linux counts private memory as anonymous memory.
    """
    usage = Path("/proc/self/smaps_rollup")
    if not usage.is_file():
        pytest.skip("needs Linux")

    def own() -> int:
        return 1024 * int(re.findall(r"Anonymous:\s+(\d+) kB", usage.read_text())[0])

    config = {**transformer_config, "num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048}
    build_transformer(config, 0).save_pretrained(tmp_path)
    size = (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    as_causal(load_transformer(tmp_path), 2)  # cause the allocations that happen once in a process
    before = own()
    student = as_causal(load_transformer(tmp_path), 2)
    assert own() - before < 0.2 * size
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert own() - before > 0.8 * size  # weights that are overwritten become private memory
    equal_again = load_transformer(tmp_path)
    assert torch.equal(equal_again.proj_out.weight + 1.0, student.proj_out.weight)
