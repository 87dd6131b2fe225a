"""The methods of diffusers load, train and save LoRA adapters on the causal student.

Latents are [2, 4, 4, 4, 4]: a video has 2 blocks of 2 latent frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import as_causal, build_transformer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
X = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
TIMES = torch.tensor([[757.0, 757.0, 20.0, 20.0], [1000.0, 1000.0, 0.0, 0.0]])


def fresh(config: dict[str, Any]) -> CausalWanTransformer3DModel:
    return as_causal(build_transformer(config, 0), 2).eval()


def forward(student: CausalWanTransformer3DModel, **more: Any) -> torch.Tensor:
    out: torch.Tensor = student(X, timestep=TIMES, encoder_hidden_states=TEXT, return_dict=False, **more)[0]
    return out


def adapted(config: dict[str, Any]) -> CausalWanTransformer3DModel:
    """Return a student with an adapter that changes its output. (The matrix B of a new LoRA adapter is 0.)"""
    student = fresh(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        student.add_adapter(LoraConfig(target_modules=TARGETS, r=4))
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    return student


@torch.no_grad()
def test_a_new_adapter_changes_nothing(transformer_config: dict[str, Any]) -> None:
    student = fresh(transformer_config)
    before = forward(student)
    student.add_adapter(LoraConfig(target_modules=TARGETS, r=4))
    assert torch.equal(forward(student), before)


def test_only_the_adapter_is_trained(transformer_config: dict[str, Any]) -> None:
    student = fresh(transformer_config)
    base = {name: value.clone() for name, value in student.state_dict().items()}
    student.add_adapter(LoraConfig(target_modules=TARGETS, r=4))
    learning = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert len(learning) == 2 * 2 * 4 * 2  # layers, attentions, projections, and the matrices A and B
    assert all("lora_" in name for name in learning)
    before = forward(student)
    before.square().mean().backward()
    torch.optim.SGD(learning.values(), lr=1.0).step()
    after = forward(student)
    assert not torch.allclose(after, before, atol=1e-4)
    kept = {
        name.replace(".base_layer", ""): value for name, value in student.state_dict().items() if "lora_" not in name
    }
    assert kept.keys() == base.keys()
    assert all(torch.equal(kept[name], value) for name, value in base.items())


@torch.no_grad()
def test_a_saved_adapter_gives_the_same_video(transformer_config: dict[str, Any], tmp_path: Path) -> None:
    student = adapted(transformer_config)
    student.save_lora_adapter(tmp_path)
    other = fresh(transformer_config)
    base = forward(other)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.equal(forward(other), forward(student))
    assert not torch.allclose(forward(other), base, atol=1e-3)


@torch.no_grad()
def test_the_scale_of_an_adapter(transformer_config: dict[str, Any]) -> None:
    student, base = adapted(transformer_config), forward(fresh(transformer_config))
    full = forward(student)
    assert torch.equal(forward(student, attention_kwargs={"scale": 0.0}), base)
    assert torch.equal(forward(student), full)  # the scale applies to one call only
    half = forward(student, attention_kwargs={"scale": 0.5})
    assert not torch.allclose(half, full, atol=1e-3)
    assert not torch.allclose(half, base, atol=1e-3)
    student.disable_adapters()
    assert torch.equal(forward(student), base)


@torch.no_grad()
@pytest.mark.parametrize("sink", [None, 0])
def test_cached_equals_uncached_with_an_adapter(transformer_config: dict[str, Any], sink: int | None) -> None:
    student = adapted(transformer_config)
    whole = forward(student)
    cache = student.make_kv_cache(batch_size=2, num_frames=4, height=4, width=4, sink_frames=sink)
    for start in (0, 2):
        block = slice(start, start + 2)
        streamed = student(
            X[:, :, block],
            timestep=TIMES[:, block],
            encoder_hidden_states=TEXT,
            return_dict=False,
            kv_cache=cache,
            start_frame=start,
        )[0]
        torch.testing.assert_close(streamed, whole[:, :, block], rtol=0, atol=2e-6)


def test_gradient_checkpointing_changes_no_gradient_of_an_adapter(transformer_config: dict[str, Any]) -> None:
    gradients = []
    for checkpointed in (False, True):
        student = adapted(transformer_config).train()
        if checkpointed:
            student.enable_gradient_checkpointing()
        forward(student).square().mean().backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert gradient is not None
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, recomputed[name]), name
