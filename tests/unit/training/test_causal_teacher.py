"""Test that diffusion forcing trains a causal teacher from a bidirectional or a causal model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.methods.shared.batches import read_batch
from causvid.training.pretrained import Init
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import load_transformer
from tests.unit.training.conftest import with_blocks


def from_folder(folder: Path) -> Init:
    return Init(folder=folder, hub=None, revision=None)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_every_block_has_its_own_timestep_and_noise_level(kinds: dict[str, Any], tmp_path: Path) -> None:
    kind = kinds["causal_teacher"]
    step = kind.step(kind.new_run(tmp_path, batch_size=8))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    step.teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["timestep"])), with_kwargs=True
    )
    for index in (0, 1):
        step(index)
    for index, (x_t, times) in enumerate(seen):
        assert times.shape == (8, 4)
        assert torch.equal(times[:, 0::2], times[:, 1::2])  # a block has two frames
        assert not torch.allclose(times[:, 0], times[:, 2])
        sigma = times.double() / 1000
        unshifted = sigma / (3 - 2 * sigma)  # inverse of shift 3
        for block in unshifted[:, ::2].T:
            assert sorted(int(u * 8) for u in block.tolist()) == list(range(8))
        batch = read_batch(step.store, seed=0, step=index, size=8, device=torch.device("cpu"))
        noise, at = batch.noise(0, "teacher_noise"), times[:, None, :, None, None] / 1000
        torch.testing.assert_close(x_t, (1 - at) * batch.latents + at * noise, rtol=1e-5, atol=1e-5)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_the_loss_is_the_flow_matching_loss_at_these_timesteps(kinds: dict[str, Any], tmp_path: Path) -> None:
    kind = kinds["causal_teacher"]
    step, seen = kind.step(kind.new_run(tmp_path)), []
    step.teacher.model.register_forward_hook(lambda _, __, out: seen.append(out[0].detach()))
    loss = step(0)["loss"].item()
    batch = read_batch(step.store, seed=0, step=0, size=4, device=torch.device("cpu"))
    expected = (seen[0] - (batch.noise(0, "teacher_noise") - batch.latents)).square().mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("inside", [".", "transformer"])
def test_zero_steps_convert_a_bidirectional_model_to_a_causal_model(
    kinds: dict[str, Any], world: Path, tmp_path: Path, inside: str
) -> None:
    """Convert the folder of a transformer and the folder of a pipeline. The weights do not change."""
    shutil.copytree(world / "teacher", tmp_path / "init" / inside, dirs_exist_ok=True)
    run = kinds["causal_teacher"].new_run(tmp_path, steps=0, init=from_folder(tmp_path / "init"))
    kinds["causal_teacher"].train(run)
    exported = load_transformer(tmp_path / "export")
    assert isinstance(exported, CausalWanTransformer3DModel)
    assert exported.config.frames_per_block == 2
    assert same_weights(exported, load_transformer(world / "teacher"))


def test_the_training_of_a_causal_teacher_can_be_continued(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    kind = kinds["causal_teacher"]
    kind.train(kind.new_run(tmp_path, steps=2, init=from_folder(world / "student")))
    exported = load_transformer(tmp_path / "export")
    assert isinstance(exported, CausalWanTransformer3DModel)
    assert not same_weights(exported, load_transformer(world / "student"))


def test_without_an_init_the_training_starts_from_the_teacher(
    kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    causal = kinds["causal_teacher"].step(kinds["causal_teacher"].new_run(tmp_path)).teacher.model
    assert isinstance(causal, CausalWanTransformer3DModel)
    assert same_weights(causal, load_transformer(world / "teacher"))


def test_blocks_that_do_not_fit_are_named(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    kind, brought = kinds["causal_teacher"], from_folder(world / "student")  # the student has blocks of two frames
    with pytest.raises(ValueError, match="model.frames_per_block is 3; 4 latent frames divide into blocks of 1, 2, 4"):
        kind.step(with_blocks(kind.new_run(tmp_path), 3))
    with pytest.raises(
        ValueError, match=r"frames_per_block 2; model.frames_per_block is 4: set model.frames_per_block to 2, or"
    ):
        kind.step(with_blocks(kind.new_run(tmp_path, init=brought), 4))
    with pytest.raises(ValueError, match=r"causal model with frames_per_block 2; .*needs a bidirectional model"):
        kinds["teacher"].step(kinds["teacher"].new_run(tmp_path, init=brought))
