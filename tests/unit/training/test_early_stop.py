"""Training stops before the update of any weight, moment or weight average if a value is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.methods.dmd import step as dmd
from causvid.methods.ode_init import step as ode_init
from causvid.methods.shared import batches
from causvid.methods.shared.batches import Batch
from causvid.methods.teacher import step as teacher
from causvid.methods.vae import step as vae
from causvid.training import optimizers
from tests.unit.training.conftest import network
from tests.unit.training.test_resume import fingerprint

STEPS = 20


@contextmanager
def poisoned_loss(step: Any, poison: float, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the loss infinite or NaN while its gradient stays finite."""
    place, backward = (
        {"DmdStep": dmd, "VaeStep": vae}.get(type(step).__name__, batches),
        optimizers.backward,
    )
    with patch.context() as inside:
        inside.setattr(place, "backward", lambda loss, index: backward(loss + poison, index))
        yield


def last_network(step: Any) -> torch.nn.Module:
    """Return the network that a step updates last."""
    if hasattr(step, "model"):
        return step.model  # type: ignore[no-any-return]  # a VAE
    return network(step, next(name for name in ("critic", "student", "teacher") if hasattr(step, name)))  # type: ignore[no-any-return]


@contextmanager
def poisoned_gradient(step: Any, poison: float, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change one value in the gradient of the largest weight of the network that the step updates last."""
    weight = max(last_network(step).parameters(), key=torch.numel)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[7] = poison
        return spoilt

    handle = weight.register_hook(spoil)
    yield
    handle.remove()


@contextmanager
def poisoned_latent(step: Any, poison: float, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change the first latent pixel of every latent frame of the batch."""
    place = {"TeacherStep": teacher, "OdeStep": ode_init, "DmdStep": dmd}[type(step).__name__]
    read: Callable[..., Batch] = place.read_batch  # type: ignore[attr-defined]

    def spoilt(*args: Any, **kwargs: Any) -> Batch:
        batch = read(*args, **kwargs)
        latents = batch.latents.clone()
        latents[..., 0, 0] = poison
        return batch._replace(latents=latents)

    with patch.context() as inside:
        inside.setattr(place, "read_batch", spoilt)
        yield


@contextmanager
def poisoned_output(model: torch.nn.Module, poison: float) -> Iterator[None]:
    """Change one corner of every frame that a network returns."""

    def spoil(_: object, __: object, output: Any) -> Any:
        spoilt = (output[0] if isinstance(output, tuple) else output).clone()
        spoilt[..., 0, 0] = poison
        return (spoilt,) if isinstance(output, tuple) else spoilt

    handle = model.register_forward_hook(spoil)
    yield
    handle.remove()


def poisoned_teacher(step: Any, poison: float, patch: pytest.MonkeyPatch) -> Any:
    return poisoned_output(network(step, "teacher"), poison)


def poisoned_vae(step: Any, poison: float, patch: pytest.MonkeyPatch) -> Any:
    return poisoned_output(step.model.vae.encoder, poison)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("dmd", poisoned_loss),
        ("dmd", poisoned_gradient),
        ("dmd", poisoned_teacher),
        ("dmd", poisoned_latent),
        ("vae", poisoned_vae),
        ("ode", poisoned_loss),
        ("ode", poisoned_latent),
        ("teacher", poisoned_gradient),
    ],
)
def test_training_stops_before_an_update_with_a_value_that_is_not_finite(
    name: str, where: Callable[..., Any], kinds: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Insert NaN or an infinity at each step, and then repeat the step without this value.

    The student is updated in every step, because only updates of the student call the teacher.
    """
    changes = {"critic_updates_per_student_update": 1, "critic_only_steps": 0} if name == "dmd" else {}
    step = kinds[name].step(kinds[name].new_run(tmp_path, steps=STEPS, **changes))
    moved = fingerprint(step)
    for index in range(STEPS):
        before = fingerprint(step)
        poison = (float("nan"), float("inf"), float("-inf"))[index % 3]
        with where(step, poison, monkeypatch), pytest.raises(FloatingPointError, match=f"step {index}: the "):
            step(index)
        after = fingerprint(step)
        untouched = before.keys() - (
            {"student_model", "student_optimizer", "student_average"} if where is poisoned_gradient else set()
        )
        assert {key: after[key] for key in untouched} == {key: before[key] for key in untouched}
        for part in step.state().values():
            if isinstance(part, torch.nn.Module):
                part.zero_grad(set_to_none=True)
        step(index)
    assert all(value != moved[key] for key, value in fingerprint(step).items())
