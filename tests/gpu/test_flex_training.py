"""Compiled FlexAttention on a GPU has the gradients of plain attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causvid.compute import device as devices
from causvid.wan.transformer.wan import as_causal, build_transformer

pytestmark = [
    pytest.mark.gpu,
    # dynamo reads .grad while it compiles flex_attention (observed with torch 2.11 on an H200)
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


# Six frames of 64 tokens fill tiles of 128 tokens completely; six frames of 15 tokens do not.
@pytest.mark.parametrize(("height", "width"), [(16, 16), (6, 10)])
@pytest.mark.parametrize("frames_per_block", [1, 3, 6])
def test_compiled_flex_attention_has_the_gradients_of_plain_attention(
    transformer_config: dict[str, Any], frames_per_block: int, height: int, width: int
) -> None:
    device = devices.pick()
    if device.type == "cpu":
        pytest.skip("no accelerator")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 6, height, width, generator=generator).to(device)
    text = torch.randn(2, 5, 8, generator=generator).to(device)
    times = torch.full((2, 6), 500.0, device=device)
    results = []
    for backend in ("native", "flex"):
        student = as_causal(build_transformer(transformer_config, 1), frames_per_block).to(device).train()
        student.set_attention_backend(backend)
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
        out = student(x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]
        out.square().mean().backward()
        optimizer.step()
        gradients = [parameter.grad for parameter in student.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        results.append([out.detach(), *gradients])
    for plain, flex in zip(*results, strict=True):
        torch.testing.assert_close(flex, plain, rtol=1e-2, atol=1e-4)  # the kernel uses TF32 products
