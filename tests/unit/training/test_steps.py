"""Test one training step of each method, and the export after zero steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from causvid.compute.parallel import Checkpointing
from causvid.compute.precision import Precision
from causvid.data.stores.latent_store import LatentStore, Record, write_store
from causvid.data.videos.video_reader import read_frames
from causvid.diffusion.flow import sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.methods.ode_init.step import pick_states
from causvid.methods.shared.batches import read_batch
from causvid.training.config import OptimizerConfig
from causvid.training.pretrained import Init
from causvid.training.trainer import CURVE
from causvid.wan.formats.configs import latent_shape
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import load_transformer
from causvid.wan.vae.vae import encode, load_vae, posterior, to_unit
from tests.conftest import VIDEO
from tests.unit.training.conftest import network, with_blocks, with_inputs

WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# --- exports after zero steps -----------------------------------------------------------------------------------------


def test_zero_dmd_steps_export_the_student_exactly(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    kinds["dmd"].train(kinds["dmd"].new_run(tmp_path, steps=0))
    assert same(weights(tmp_path / "export"), weights(world / "student"))
    exported = load_transformer(tmp_path / "export")
    assert isinstance(exported, CausalWanTransformer3DModel)
    assert exported.config.frames_per_block == 2
    assert (tmp_path / CURVE).read_text() == "step\n"


def test_critic_only_steps_do_not_change_the_student(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    kinds["dmd"].train(kinds["dmd"].new_run(tmp_path, steps=2, critic_only_steps=2))
    assert same(weights(tmp_path / "export"), weights(world / "student"))


@pytest.mark.parametrize("score_timesteps", [(980.0, 20.0), (0.0, 980.0), (20.0, 1001.0)])
def test_score_timesteps_out_of_range_or_order_are_rejected(
    kinds: dict[str, Any], tmp_path: Path, score_timesteps: tuple[float, float]
) -> None:
    with pytest.raises(
        ValueError, match=r"train_dmd.score_timesteps is \[.*; give the smallest and the largest timestep"
    ):
        kinds["dmd"].new_run(tmp_path, score_timesteps=score_timesteps)


def test_zero_ode_steps_export_the_teacher_as_a_student(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    kinds["ode"].train(kinds["ode"].new_run(tmp_path, steps=0))
    assert same(weights(tmp_path / "export"), weights(world / "teacher"))
    assert isinstance(load_transformer(tmp_path / "export"), CausalWanTransformer3DModel)


def test_zero_steps_export_the_model_of_init(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "v").mkdir()
    found = Init(folder=world, hub=None, revision=None)
    teacher = kinds["teacher"].new_run(
        tmp_path / "t", steps=0, init=Init(folder=world / "teacher", hub=None, revision=None)
    )
    kinds["teacher"].train(teacher)
    assert same(weights(tmp_path / "t" / "export"), weights(world / "teacher"))
    kinds["vae"].train(kinds["vae"].new_run(tmp_path / "v", steps=0, init=found))
    assert same(weights(tmp_path / "v" / "export"), weights(world / "vae"))
    assert load_vae(tmp_path / "v" / "export").config.latents_std == load_vae(world / "vae").config.latents_std


# --- the exponential moving average of the weights --------------------------------------------------------------------


@pytest.mark.parametrize(("name", "trained"), [("teacher", "teacher"), ("ode", "student"), ("dmd", "student")])
def test_the_export_is_the_weight_average(name: str, trained: str, kinds: dict[str, Any], tmp_path: Path) -> None:
    """After the first update the average equals the weights; later it is decay * average + (1 - decay) * weights."""
    step = kinds[name].step(
        kinds[name].new_run(tmp_path, ema_decay=0.75, critic_only_steps=0)
        if name == "dmd"
        else kinds[name].new_run(tmp_path, ema_decay=0.75)
    )
    history = []
    for index in (0, 2, 4):  # DMD updates the student in every second step
        step(index)
        history.append(state(network(step, trained)))
    for parameter, average in getattr(step, trained).average.module.state_dict().items():
        a, b, c = (h[parameter] for h in history)
        torch.testing.assert_close(average, 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c, rtol=1e-5, atol=1e-6)


# --- updates, inputs and scores of DMD --------------------------------------------------------------------------------


def test_dmd_updates_each_network_in_the_right_steps(kinds: dict[str, Any], tmp_path: Path) -> None:
    """Each step updates the critic.

    Some steps after ``critic_only_steps`` update the student. No step updates the teacher.
    """
    step = kinds["dmd"].step(
        kinds["dmd"].new_run(tmp_path, steps=20, critic_only_steps=2, critic_updates_per_student_update=3)
    )
    teacher = state(network(step, "teacher"))
    updated = []
    for index in range(9):
        student, critic = state(step.student.model), state(step.critic.model)
        values = step(index)
        assert not same(state(step.critic.model), critic)
        updated.append(not same(state(step.student.model), student))
        assert ("student_loss" in values) == updated[-1]
        assert {"critic_loss", "critic_grad_norm"} <= values.keys()
    assert updated == [False, False, True, False, False, True, False, False, True]
    assert same(state(network(step, "teacher")), teacher)
    assert all(
        parameter.grad is None
        for name in ("teacher", "student", "critic")
        for parameter in network(step, name).parameters()
    )


def test_inputs_of_the_student_are_real_clips_with_a_timestep_per_block(
    kinds: dict[str, Any], schedule: ScheduleConfig, world: Path, tmp_path: Path
) -> None:
    """As in the original CausVid code, each block has a denoising timestep, or timestep 0 and no noise."""
    step = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, batch_size=8))
    seen = []
    step.student.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["timestep"])), with_kwargs=True
    )
    step(1)
    stored = LatentStore(world / "lmdb" / "latents")
    clips = torch.stack([stored[k].latents for k in range(8)])
    drawn: set[float] = set()
    for x_t, timestep in seen:
        assert timestep.shape == (8, 4)
        assert torch.equal(timestep[:, 0::2], timestep[:, 1::2])  # the two frames of a block share a timestep
        drawn |= set(timestep.flatten().tolist())
        for sample, times in zip(x_t, timestep, strict=True):
            clean = times == 0
            if clean.any():
                assert (clips[:, :, clean] == sample[:, clean]).flatten(1).all(dim=1).any()
            assert not (clips[:, :, ~clean] == sample[:, ~clean]).flatten(1).all(dim=1).any() or clean.all()
    assert drawn == {*schedule.denoising_timesteps, 0.0}
    assert len(seen) == 2  # the update of the student and the sample for the critic have separate random draws
    assert not torch.equal(seen[0][1], seen[1][1])
    data = read_batch(step.store, seed=0, step=1, size=8, device=torch.device("cpu")).latents
    noisy = (seen[0][1] > 0) & (seen[1][1] > 0)
    student_noise, critic_noise = (noise_in(x_t, data, timestep).transpose(1, 2)[noisy] for x_t, timestep in seen)
    assert student_noise.std().item() == pytest.approx(1, abs=0.1)
    assert (student_noise - critic_noise).abs().mean() > 0.5


def noise_in(x_t: torch.Tensor, x0: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return the noise that was added to ``x0``. The noise is undefined at timestep 0."""
    sigma = sigma_of(timestep)
    return (x_t - (1 - sigma) * x0) / sigma


def test_scores_are_compared_at_new_noise_and_one_timestep_per_video(kinds: dict[str, Any], tmp_path: Path) -> None:
    """Teacher and critic see the same noisy video.

    The teacher is called with and without the prompt, and the critic is called with the prompt.
    """
    step = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path))
    calls: dict[str, list[tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]]] = {}
    for name in ("student", "teacher", "critic"):
        network(step, name).register_forward_hook(
            lambda _, args, kwargs, out, name=name: calls.setdefault(name, []).append(
                (args[0], kwargs, out[0].detach())
            ),
            with_kwargs=True,
        )
    step(1)
    ((asked, teacher_kwargs, _),) = calls["teacher"]
    at, critic_kwargs, _ = calls["critic"][0]
    assert torch.equal(asked, torch.cat([at, at]))
    assert torch.equal(teacher_kwargs["timestep"], critic_kwargs["timestep"].repeat(2))
    negative = step.texts.negative().expand(4, -1, -1)
    assert torch.equal(
        teacher_kwargs["encoder_hidden_states"], torch.cat([negative, critic_kwargs["encoder_hidden_states"]])
    )
    time = critic_kwargs["timestep"]
    assert time.shape == (4,)
    x_t, kwargs, velocity = calls["student"][0]
    sample = velocity_to_x0(x_t, velocity, sigma_of(kwargs["timestep"]))
    fresh = noise_in(at, sample, time)
    assert fresh.std().item() == pytest.approx(1, abs=0.1)
    data = read_batch(step.store, seed=0, step=1, size=4, device=torch.device("cpu")).latents
    noisy = kwargs["timestep"] > 0
    used = noise_in(x_t, data, kwargs["timestep"]).transpose(1, 2)[noisy]
    assert (fresh.transpose(1, 2)[noisy] - used).abs().mean() > 0.5
    # The update of the critic uses another sample, other noise and other timesteps than the update of the student.
    assert len(calls["critic"]) == len(calls["student"]) == 2
    assert not torch.equal(calls["critic"][1][1]["timestep"], time)


# torch warns about a slower kernel for norm_q
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_bfloat16_uses_the_current_weights(kinds: dict[str, Any], tmp_path: Path) -> None:
    """autocast caches casts of the weights until its context ends. The student may be updated before this end."""
    fast = OptimizerConfig(
        kind="adamw",
        learning_rate=0.5,
        betas=(0.0, 0.99),
        weight_decay=0.0,
        grad_clip=1.0,
        warmup_steps=0,
        decay="constant",
    )
    step = kinds["dmd"].step(
        kinds["dmd"].new_run(tmp_path, precision=Precision.BFLOAT16, student_optimizer=fast, critic_only_steps=0)
    )
    samples = []
    step.student.model.register_forward_hook(
        lambda _, args, kwargs, out: samples.append((args, kwargs, out[0].detach())), with_kwargs=True
    )
    step(0)
    args, kwargs, sample = samples[-1]  # the sample for the critic, generated after the update of the student
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        now = step.student.model(*args, **kwargs)[0]
    torch.testing.assert_close(sample, now)


# --- prompt dropout, ODE regression and VAE training ------------------------------------------------------------------


def test_prompt_dropout_uses_the_negative_prompt(kinds: dict[str, Any], tmp_path: Path) -> None:
    for dropout, expected in [(0.0, False), (1.0, True)]:
        step = kinds["teacher"].step(kinds["teacher"].new_run(tmp_path, prompt_dropout=dropout))
        seen: list[torch.Tensor] = []
        step.teacher.model.register_forward_pre_hook(
            lambda _, __, kwargs, seen=seen: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        step(0)
        negative = step.texts.negative()[0]
        assert {torch.equal(row, negative) for row in seen[0]} == {expected}


def test_timesteps_of_the_teacher_cover_the_schedule_evenly(kinds: dict[str, Any], tmp_path: Path) -> None:
    step = kinds["teacher"].step(kinds["teacher"].new_run(tmp_path, batch_size=8))
    seen: list[torch.Tensor] = []
    step.teacher.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    for index in (0, 1):
        step(index)
    for times in seen:
        sigma = times.double() / 1000
        unshifted = sigma / (3 - 2 * sigma)  # inverse of the shift with factor 3
        assert [int(u * 8) for u in unshifted.tolist()] == list(range(8))
    assert not torch.equal(*seen)


def test_pairs_with_other_timesteps_than_the_schedule_are_rejected(kinds: dict[str, Any], tmp_path: Path) -> None:
    run = kinds["ode"].new_run(tmp_path)
    other = ScheduleConfig(shift=3.0, solver_steps=4, denoising_timesteps=(1000, 900, 750), context_timestep=0.0)
    with pytest.raises(ValueError, match=r"\[1000.0, 750.0, 500.0, 0.0\].*needs \[1000.*, 900.*, 750.*, 0.0\]"):
        kinds["ode"].step(replace(run, record=replace(run.record, schedule=other)))
    with pytest.raises(ValueError, match="model.frames_per_block is 3; 4 latent frames divide into blocks of 1, 2, 4"):
        kinds["ode"].step(with_blocks(run, 3))


def test_a_frame_comes_from_the_chosen_state() -> None:
    # the value of sample b at timestep t and frame f is 12 b + 4 t + f
    trajectory = torch.arange(2 * 3 * 1 * 4).view(2, 3, 1, 4, 1, 1).float()
    chosen = torch.tensor([[0, 0, 2, 2], [1, 1, 0, 0]])
    picked = pick_states(trajectory, chosen)
    assert picked.shape == (2, 1, 4, 1, 1)
    assert picked.flatten(1).tolist() == [[0, 1, 10, 11], [16, 17, 14, 15]]


def test_inputs_of_ode_regression_are_states_of_one_trajectory(
    kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    step = kinds["ode"].step(kinds["ode"].new_run(tmp_path))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    step.student.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["timestep"])), with_kwargs=True
    )
    step(0)
    stored = LatentStore(world / "lmdb" / "pairs")
    pairs = torch.stack([stored[k].latents for k in range(len(stored))])  # [N, T, C, F, H, W]
    states = {1000.0: 0, 750.0: 1, 500.0: 2, 0.0: 3}
    ((x_t, timestep),) = seen
    for sample, times in zip(x_t, timestep.tolist(), strict=True):
        chosen = torch.tensor([[states[t] for t in times]] * len(pairs))
        assert (pick_states(pairs, chosen) == sample).flatten(1).all(dim=1).any()


def poisoned(folder: Path, world: Path, record: int) -> Path:
    """Return the path of a copy of the latents in which one value of ``record`` is NaN."""
    source = LatentStore(world / "lmdb" / "latents")
    clips = [source[k] for k in range(len(source))]
    bad = clips[record].latents.clone()
    bad[0, 0, 0, 0] = float("nan")
    clips[record] = Record(bad, clips[record].prompt)
    write_store(clips, folder, timesteps=None, per_transaction=8)
    return folder


@pytest.mark.parametrize("name", ["teacher", "dmd"])
def test_a_latent_that_is_nan_stops_training_before_an_update(
    name: str, kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    """Training stops. (The original DMD code replaces a NaN update with zeros, and continues.)"""
    clean = kinds[name].new_run(tmp_path, batch_size=2)
    run = with_inputs(clean, latents=poisoned(tmp_path / "lmdb", world, record=5))
    step = kinds[name].step(run)
    before: dict[str, dict[str, torch.Tensor]] = {}

    def until_it_stops() -> None:
        for index in range(8):
            before.update({key: state(part) for key, part in step.state().items() if isinstance(part, torch.nn.Module)})
            step(index)

    with pytest.raises(
        FloatingPointError, match=r"step \d: the (loss is nan|gradient is not finite); no weight was changed"
    ):
        until_it_stops()
    assert all(same(state(step.state()[key]), weights_before) for key, weights_before in before.items())


def test_the_vae_trains_on_frames_then_on_clips(kinds: dict[str, Any], tmp_path: Path) -> None:
    step = kinds["vae"].step(kinds["vae"].new_run(tmp_path))
    sizes: list[torch.Size] = []
    step.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    for index in range(4):
        step(index)
    assert sizes == [(4, 3, 1, 32, 32)] * 3 + [(2, 3, 13, 32, 32)]


def test_a_trained_vae_has_the_statistics_of_its_latents(kinds: dict[str, Any], tmp_path: Path) -> None:
    run = kinds["vae"].new_run(tmp_path)
    kinds["vae"].train(run)
    vae = load_vae(tmp_path / "export")
    videos = [to_unit(torch.from_numpy(read_frames(clip)))[None] for clip in kinds["vae"].step(run).clips]
    latents = torch.cat([encode(vae, video) for video in videos])
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-4
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), rtol=1e-2, atol=0)
    assert tuple(posterior(vae, videos[0]).mean.shape[1:]) == latent_shape(vae.config, VIDEO).sizes


@pytest.mark.parametrize("name", ["teacher", "causal_teacher", "ode", "dmd"])
def test_gradient_checkpointing_does_not_change_training(name: str, kinds: dict[str, Any], tmp_path: Path) -> None:
    curves = []
    for kind in get_args(Checkpointing):
        run = kinds[name].new_run(tmp_path / kind, steps=2)
        run = replace(run, compute=replace(run.compute, gradient_checkpointing=kind))
        kinds[name].train(run)
        curves.append((run.work / CURVE).read_text())
    assert curves == curves[:1] * 3
