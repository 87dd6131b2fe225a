"""Test Muon on convolution kernels, the schedule of the learning rate, and gradients that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from causvid.methods.vae.step import _Autoencoding
from causvid.training.config import OptimizerConfig
from causvid.training.optimizers import Optimizer, learning_rate
from causvid.wan.transformer.wan import build_transformer, is_block_matrix
from causvid.wan.vae.vae import build_vae, channels_last, is_kernel


def config(**changes: Any) -> OptimizerConfig:
    values: dict[str, Any] = {
        "kind": "muon",
        "learning_rate": 0.1,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "grad_clip": 1e9,
        "warmup_steps": 0,
        "decay": "constant",
    }
    return OptimizerConfig(**{**values, **changes})


def convolution(memory_format: torch.memory_format) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(4, 6, (3, 3, 3)).to(memory_format=memory_format)


def all_matrices(_: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2


def backward(module: nn.Module) -> None:
    x = torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(1))
    module(x).square().sum().backward()


FORMATS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_muon_updates_a_kernel_through_a_view_as_a_matrix(memory_format: torch.memory_format) -> None:
    module = convolution(memory_format)
    optimizer = Optimizer(module, config(), steps=10, is_matrix=all_matrices)
    ((parameter, view),) = optimizer.views
    assert parameter is module.weight
    assert view.shape == (6, 4 * 27)
    assert view.data_ptr() == module.weight.data_ptr()
    before = module.weight.detach().clone()
    backward(module)
    optimizer.step(0)
    change = module.weight.detach() - before
    assert change.abs().min() > 0  # the update changed the weight of the module
    assert module.weight.is_contiguous(memory_format=memory_format)
    # Muon orthogonalises the update: the singular values of the update are similar; those of the gradient are not.
    values = torch.linalg.svdvals(change.flatten(1))
    assert values.max() / values.min() < 2


def test_the_update_of_muon_does_not_depend_on_the_memory_format() -> None:
    """If gradient and weight had different column orders, the update would be wrong and no error would be raised."""
    weights = []
    for memory_format in FORMATS:
        module = convolution(memory_format)
        optimizer = Optimizer(module, config(), steps=10, is_matrix=all_matrices)
        before = module.weight.detach().clone()
        for step in range(3):
            backward(module)
            optimizer.step(step)
        weights.append((module.weight.detach() - before).flatten())
    assert torch.nn.functional.cosine_similarity(*weights, dim=0) > 0.99


def test_a_step_decreases_the_loss() -> None:
    for kind in ("muon", "adamw"):
        module = convolution(torch.channels_last_3d)
        optimizer = Optimizer(module, config(kind=kind, learning_rate=0.01), steps=30, is_matrix=all_matrices)
        x = torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(1))
        losses = []
        for step in range(30):
            loss = (module(x) - 1).square().mean()
            loss.backward()
            optimizer.step(step)
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_with_kind_adamw_all_parameters_use_adamw() -> None:
    module = convolution(torch.contiguous_format)
    optimizer = Optimizer(module, config(kind="adamw"), steps=10, is_matrix=all_matrices)
    assert [type(o).__name__ for o in optimizer.optimizers] == ["AdamW"]
    assert len(optimizer.optimizers[0].param_groups[0]["params"]) == 2


def test_frozen_parameters_do_not_change() -> None:
    module = convolution(torch.contiguous_format)
    module.weight.requires_grad_(False)
    optimizer = Optimizer(module, config(), steps=10, is_matrix=all_matrices)
    assert optimizer.views == []
    before = module.weight.clone()
    backward(module)
    optimizer.step(0)
    assert torch.equal(module.weight, before)


def test_a_parameter_without_a_gradient_does_not_change() -> None:
    module = nn.ModuleList([convolution(torch.contiguous_format), convolution(torch.contiguous_format)])
    optimizer = Optimizer(module, config(weight_decay=0.1), steps=10, is_matrix=all_matrices)
    before = module[1].weight.detach().clone()
    backward(module[0])
    optimizer.step(0)
    assert torch.equal(module[1].weight, before)


def test_gradients_are_clipped_by_their_total_norm_and_cleared() -> None:
    module = convolution(torch.contiguous_format)
    optimizer = Optimizer(module, config(kind="adamw", grad_clip=1.0), steps=10, is_matrix=all_matrices)
    backward(module)
    expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    assert expected > 1
    assert optimizer.step(0).item() == pytest.approx(expected.item())
    assert all(parameter.grad is None for parameter in module.parameters())
    moments = [state["exp_avg"] for state in optimizer.optimizers[0].state.values()]
    clipped = torch.cat([m.flatten() for m in moments]).norm() / (1 - 0.9)
    assert clipped.item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_gradient_that_is_not_finite_changes_no_weight(kind: str, poison: float) -> None:
    module = convolution(torch.channels_last_3d)
    optimizer = Optimizer(module, config(kind=kind), steps=10, is_matrix=all_matrices)
    backward(module)
    optimizer.step(0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    backward(module)
    assert module.bias is not None
    assert module.bias.grad is not None
    module.bias.grad[0] = poison
    with pytest.raises(FloatingPointError, match="step 1: the gradient is not finite; no weight was changed"):
        optimizer.step(1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_schedule_of_the_learning_rate() -> None:
    law = config(learning_rate=1.0, warmup_steps=4, decay="cosine")
    rates = [learning_rate(law, step, 24) for step in range(24)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[14] == pytest.approx(0.5)  # step 14 is half-way through the decay
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01
    flat = config(learning_rate=2.0, warmup_steps=0, decay="constant")
    assert {learning_rate(flat, step, 10) for step in range(10)} == {2.0}
    assert learning_rate(config(warmup_steps=100, decay="cosine"), 5, 6) == pytest.approx(0.1 * 6 / 101)


def test_the_learning_rate_is_set_in_every_optimizer() -> None:
    module = convolution(torch.contiguous_format)
    optimizer = Optimizer(module, config(decay="cosine"), steps=2, is_matrix=all_matrices)
    for step, expected in [(0, 0.1), (1, 0.1 * 0.5 * (1 + math.cos(math.pi / 2)))]:
        backward(module)
        optimizer.step(step)
        assert [group["lr"] for o in optimizer.optimizers for group in o.param_groups] == pytest.approx([expected] * 2)


def test_a_restored_optimizer_continues_bit_for_bit() -> None:
    results = []
    for reload_at in (None, 2):
        module = convolution(torch.channels_last_3d)
        optimizer = Optimizer(module, config(), steps=9, is_matrix=all_matrices)
        for step in range(5):
            if step == reload_at:
                state = optimizer.state_dict()
                optimizer = Optimizer(module, config(), steps=9, is_matrix=all_matrices)
                optimizer.load_state_dict(state)
            backward(module)
            optimizer.step(step)
        results.append(module.weight.detach().clone())
    assert torch.equal(*results)


def test_transformer_weights_that_muon_updates(transformer_config: dict[str, Any]) -> None:
    named = dict(build_transformer(transformer_config, 0).named_parameters())
    chosen = {name for name, parameter in named.items() if is_block_matrix(name, parameter)}
    assert all(name.startswith("blocks.") and name.endswith(".weight") and named[name].ndim == 2 for name in chosen)
    # each layer has two attentions with four matrices each, and a feed-forward network with two matrices
    assert len(chosen) == 2 * (8 + 2)


def test_vae_weights_that_muon_updates(vae_config: dict[str, Any]) -> None:
    """AdamW updates gains of norms, biases, convolutions next to the latents, and the convolution that returns RGB.

    This choice gave the best result.
    """
    vae = build_vae({**vae_config, "patch_size": None, "in_channels": 3, "out_channels": 3}, 0)
    named = dict(_Autoencoding(channels_last(vae)).named_parameters())
    chosen = {name for name, parameter in named.items() if is_kernel(name, parameter)}
    kernels = {f"vae.{n}.weight" for n, m in vae.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d)}
    excluded = {"vae.quant_conv.weight", "vae.post_quant_conv.weight", "vae.decoder.conv_out.weight"}
    assert excluded < kernels
    assert chosen == kernels - excluded
