"""Test the DMD options: rollouts, a given initial student, shared samples, clean frames in the loss, and images."""

from __future__ import annotations

from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.data.stores.prompt_store import write_prompts
from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import conditional
from causvid.methods.shared.batches import read_batch
from causvid.sampling.autoregressive import generate_blocks
from causvid.training.pretrained import Init
from causvid.wan.transformer.wan import as_causal, load_transformer
from tests.unit.training.conftest import SHARED, network, with_blocks, with_inputs


@pytest.fixture
def bidirectional(kinds: dict[str, Any], world: Path) -> Any:
    """Return a function that creates DMD runs with a bidirectional student."""

    def new_run(work: Path, **changes: Any) -> Any:
        return with_blocks(with_inputs(kinds["dmd"].new_run(work, **changes), student=world / "teacher"), None)

    return new_run


def watch(step: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Record the inputs (x_t, timestep) of every later call of the student."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    step.student.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0].clone(), kwargs["timestep"].clone())), with_kwargs=True
    )
    return seen


# --- rollouts of a bidirectional student ------------------------------------------------------------------------------


def test_a_bidirectional_student_has_one_timestep_above_zero_for_all_frames(
    kinds: dict[str, Any], bidirectional: Any, schedule: ScheduleConfig, tmp_path: Path
) -> None:
    step = kinds["dmd"].step(bidirectional(tmp_path, batch_size=8))
    seen = watch(step)
    for index in (1, 3):
        step(index)
    assert {tuple(timestep.shape) for _, timestep in seen} == {(8,)}
    assert {t for _, timestep in seen for t in timestep.tolist()} == set(schedule.denoising_timesteps)


def test_a_bidirectional_rollout_has_the_states_of_the_sampler_as_inputs(
    kinds: dict[str, Any], bidirectional: Any, schedule: ScheduleConfig, tmp_path: Path
) -> None:
    """The input at a timestep is the noised x0 of the previous timestep. This test computes each input separately."""
    step = kinds["dmd"].step(bidirectional(tmp_path, batch_size=8, inputs="rollout"))
    batch = read_batch(step.store, seed=0, step=1, size=8, device=torch.device("cpu"))
    text, student = step.texts(batch.prompts), conditional(step.student.model, step.texts(batch.prompts))
    times, states = schedule.denoising_timesteps, [batch.noise(0, "student_noise")]
    with torch.no_grad():
        for index, (before, after) in enumerate(pairwise(times)):
            here, there = torch.full((8,), before), sigma_of(torch.full((8,), after))
            x0 = velocity_to_x0(states[-1], student(states[-1], here), sigma_of(here))
            states.append(add_noise(x0, batch.noise(0, f"student_renoise_{index}"), there))
    seen = watch(step)
    step.source(1, batch, text, "student")
    *simulated, (x_t, timestep) = seen
    assert len(simulated) == len(times) - 1
    chosen = [times.index(t) for t in timestep.tolist()]
    assert len(set(chosen)) > 1
    for sample, index in enumerate(chosen):
        torch.testing.assert_close(x_t[sample], states[index][sample])


@pytest.mark.parametrize("student", ["causal", "bidirectional"])
def test_a_rollout_reads_no_clip(student: str, kinds: dict[str, Any], bidirectional: Any, tmp_path: Path) -> None:
    step = kinds["dmd"].step(
        {"causal": kinds["dmd"].new_run, "bidirectional": bidirectional}[student](tmp_path, inputs="rollout")
    )
    batch = read_batch(step.store, seed=0, step=1, size=4, device=torch.device("cpu"))
    text = step.texts(batch.prompts)
    other = batch._replace(latents=torch.full_like(batch.latents, 9.0))
    assert torch.equal(step.source(1, batch, text, "critic"), step.source(1, other, text, "critic"))
    assert torch.equal(step.source.noisy(batch, "critic"), step.source.noisy(other, "critic"))


def test_a_rollout_does_not_need_the_prompts_of_the_latents(
    kinds: dict[str, Any], bidirectional: Any, world: Path, tmp_path: Path
) -> None:
    """Rollouts use the prompts in encode_prompts.captions.

    Real clips need the prompts of the LMDB before the first step.
    """
    captions = ["a green cone", "a grey cone"]
    embeddings = {prompt: torch.full((3, 8), float(k)) for k, prompt in enumerate(["", *captions])}
    write_prompts(tmp_path / "prompts", embeddings, captions=captions, evaluation=[], negative="", tokens=4)
    run = with_inputs(bidirectional(tmp_path, inputs="rollout"), prompts=tmp_path / "prompts")
    step, asked = kinds["dmd"].step(run), list[str]()
    texts = step.texts
    step.texts = type(
        "Recording", (), {"negative": texts.negative, "__call__": lambda _, p: asked.extend(p) or texts(p)}
    )()
    step(0)
    step(1)
    assert set(asked) == set(captions)
    for name in ("teacher", "ode", "dmd"):
        with pytest.raises(ValueError, match=r"has no embedding of 8 prompts of .*set encode_prompts.captions or"):
            kinds[name].step(with_inputs(kinds[name].new_run(tmp_path), prompts=tmp_path / "prompts"))
        kinds[name].step(with_inputs(kinds[name].new_run(tmp_path, steps=0), prompts=tmp_path / "prompts"))


def test_only_the_last_forward_pass_of_a_bidirectional_rollout_has_a_gradient(
    kinds: dict[str, Any], bidirectional: Any, tmp_path: Path
) -> None:
    step = kinds["dmd"].step(bidirectional(tmp_path, inputs="rollout"))
    trained: list[bool] = []
    step.student.model.register_forward_hook(lambda _, __, out: trained.append(out[0].requires_grad))
    step(1)
    student_update, critic_update = trained[:3], trained[3:]
    assert student_update == [False, False, True]
    assert critic_update == [False, False, False]


# --- rollouts of a causal student -------------------------------------------------------------------------------------


def test_a_causal_rollout_equals_the_sampler_with_the_noise_of_the_run(
    kinds: dict[str, Any], schedule: ScheduleConfig, tmp_path: Path
) -> None:
    """The noise depends only on the seed, the purpose and the sample. The loss includes all frames."""
    step = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, inputs="rollout"))
    batch = read_batch(step.store, seed=0, step=1, size=4, device=torch.device("cpu"))
    text, renoise = step.texts(batch.prompts), count()
    seen = watch(step)
    for index in range(9):
        seen.clear()
        sample = step.source(index, batch, text, "critic")
        if len(seen) == 2 * len(schedule.denoising_timesteps) + 1:
            break
    with torch.no_grad():
        expected = generate_blocks(
            step.student.model, text, batch.noise(0, "critic_noise"), schedule,
            lambda frames: batch.noise(0, f"critic_renoise_{next(renoise)}", (4, frames, 4, 4)),
        )  # fmt: skip
        assert torch.equal(sample, torch.cat(list(expected), dim=2))
    scored = step.source.noisy(batch, "critic")
    assert scored.shape == (4, 4)
    assert scored.all()


def test_all_blocks_and_samples_of_an_iteration_share_the_exit_step(
    kinds: dict[str, Any], schedule: ScheduleConfig, tmp_path: Path
) -> None:
    """Every iteration and every purpose has a new random exit step."""
    run = kinds["dmd"].new_run(tmp_path, inputs="rollout", critic_only_steps=0, critic_updates_per_student_update=1)
    step = kinds["dmd"].step(run)
    seen, exits = watch(step), []
    for index in range(12):
        seen.clear()
        step(index)
        assert all((timestep == timestep[0, 0]).all() for _, timestep in seen)
        times = [timestep[0, 0].item() for _, timestep in seen]
        rollouts = []  # an update calls the student for the first block, for a context pass, and for the second block
        for _ in ("student", "critic"):
            steps = times.index(0.0)
            assert times[: 2 * steps + 1] == [*times[:steps], 0.0, *times[:steps]]
            assert times[:steps] == list(schedule.denoising_timesteps)[:steps]
            rollouts.append(steps)
            times = times[2 * steps + 1 :]
        assert not times
        exits.append(rollouts)
    student, critic = zip(*exits, strict=True)
    assert set(student) == set(critic) == {1, 2, 3}
    assert student != critic


@pytest.mark.parametrize(("inputs", "passes"), [("rollout", 3), ("truncated_rollout", 2)])
def test_one_pass_for_each_block_of_a_causal_rollout_has_a_gradient_and_so_has_the_context_pass(
    kinds: dict[str, Any], tmp_path: Path, inputs: str, passes: int
) -> None:
    """The update of the student trains all weights. The update of the critic needs no gradient of the student.

    In a truncated rollout, the context pass of the first block has no gradient.
    """
    step = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, inputs=inputs))
    trained: list[bool] = []
    step.student.model.register_forward_hook(lambda _, __, out: trained.append(out[0].requires_grad))
    before = {name: parameter.detach().clone() for name, parameter in step.student.model.named_parameters()}
    step(0)
    assert not any(trained)
    step(1)
    assert sum(trained) == passes
    assert not any(torch.equal(parameter, before[name]) for name, parameter in step.student.model.named_parameters())


def test_a_causal_rollout_has_no_clean_frames(kinds: dict[str, Any], tmp_path: Path) -> None:
    losses = []
    for included in (True, False):
        run = kinds["dmd"].new_run(tmp_path, inputs="rollout", clean_frames_in_loss=included)
        losses.append(kinds["dmd"].step(run)(1)["student_loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("inputs", ["data", "rollout"])
def test_frames_that_do_not_divide_into_blocks_are_rejected(
    inputs: str, kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    as_causal(load_transformer(world / "teacher"), 3).save_pretrained(tmp_path / "threes")
    run = with_blocks(with_inputs(kinds["dmd"].new_run(tmp_path, inputs=inputs), student=tmp_path / "threes"), 3)
    with pytest.raises(ValueError, match="model.frames_per_block is 3; 4 latent frames divide into blocks of 1, 2, 4"):
        kinds["dmd"].step(run)


# --- samples that student and critic share ----------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["causal", "bidirectional"])
@pytest.mark.parametrize("inputs", ["data", "rollout"])
def test_student_and_critic_use_one_batch_of_samples_with_separate_noise(
    inputs: str, student: str, kinds: dict[str, Any], bidirectional: Any, tmp_path: Path
) -> None:
    """A cycle ends with an update of the student. The student generates samples once per cycle."""
    run = {"causal": kinds["dmd"].new_run, "bidirectional": bidirectional}[student](
        tmp_path, steps=20, inputs=inputs, critic_only_steps=4, critic_updates_per_student_update=3, **SHARED
    )
    step = kinds["dmd"].step(run)
    learned: list[tuple[torch.Tensor, torch.Tensor]] = []
    scored: list[tuple[torch.Tensor, torch.Tensor]] = []
    step.critic.model.register_forward_pre_hook(
        lambda _, args, kwargs: (learned if torch.is_grad_enabled() else scored).append((args[0], kwargs["timestep"])),
        with_kwargs=True,
    )
    asked, passes, turns, samples = watch(step), list[bool](), list[bool](), list[Any]()
    sampling = step._sample
    step._sample = lambda *args, **kwargs: samples.append(sampling(*args, **kwargs)) or samples[-1]
    for index in range(11):
        asked.clear()
        values = step(index)
        passes.append(bool(asked))
        turns.append("student_loss" in values)
    assert passes == [True, True, False, False, True, False, False, True, False, False, True]
    assert turns == [index in (6, 9) for index in range(11)]
    assert [sample.step for sample in samples] == [0, 1, 4, 7, 10]
    assert [sample.x0.requires_grad for sample in samples] == [False, False, True, True, True]
    assert len({sample.x0.sum().item() for sample in samples}) == len(samples)
    assert len(learned) == 11
    assert len(scored) == 2
    for before, after in pairwise([*learned[4:7], scored[0]]):
        assert not torch.equal(before[1], after[1])
        assert not torch.equal(before[0], after[0])


def test_sharing_samples_does_not_change_the_gradient_of_the_student(kinds: dict[str, Any], tmp_path: Path) -> None:
    """Updates of the critic, before the update of the student, change neither the samples nor their graph."""
    shared = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, critic_only_steps=0, **SHARED))
    shared(0)
    values = shared(1)
    alone = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, critic_only_steps=0))
    alone.critic.model.load_state_dict(shared.critic.model.state_dict())
    batch = alone._read(0)
    again = alone._update_student(1, [alone._sample(0, batch, batch, "critic", gradient=True)])
    assert again["student_loss"].item() == pytest.approx(values["student_loss"].item(), rel=1e-6)
    assert again["student_grad_norm"].item() == pytest.approx(values["student_grad_norm"].item(), rel=1e-6)


# --- a given initial student ------------------------------------------------------------------------------------------


def test_ode_regression_of_a_bidirectional_student(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    """Zero steps export the teacher as the student. In training, no clip has timestep 0."""
    (tmp_path / "zero").mkdir()
    run = with_blocks(kinds["ode"].new_run(tmp_path / "zero", steps=0), None)
    kinds["ode"].train(run)
    exported, teacher = (load_transformer(f) for f in (tmp_path / "zero" / "export", world / "teacher"))
    assert type(exported) is type(teacher)
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), teacher.parameters(), strict=True))
    step = kinds["ode"].step(with_blocks(kinds["ode"].new_run(tmp_path, batch_size=8), None))
    seen: list[torch.Tensor] = []
    step.student.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    for index in range(4):
        assert step(index)["loss"] > 0
    assert {tuple(timestep.shape) for timestep in seen} == {(8,)}
    assert min(timestep.min().item() for timestep in seen) > 0


def test_training_can_start_from_a_given_student(kinds: dict[str, Any], world: Path, tmp_path: Path) -> None:
    """Zero steps export the given student. DMD can therefore start from a student of the original CausVid code."""
    (tmp_path / "zero").mkdir()
    init = Init(folder=world / "student", hub=None, revision=None)
    kinds["ode"].train(kinds["ode"].new_run(tmp_path / "zero", steps=0, init=init))
    exported, brought = (load_transformer(folder) for folder in (tmp_path / "zero" / "export", world / "student"))
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), brought.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [(None, "this training needs a bidirectional model: choose"), (4, "model.frames_per_block is 4: set")],
)
def test_a_causal_start_must_have_the_blocks_of_the_run(
    kinds: dict[str, Any], world: Path, tmp_path: Path, wanted: int | None, said: str
) -> None:
    init = Init(folder=world / "student", hub=None, revision=None)
    run = with_blocks(kinds["ode"].new_run(tmp_path, init=init), wanted)
    with pytest.raises(ValueError, match=f"student are a causal model with frames_per_block 2; {said}"):
        kinds["ode"].step(run)


def test_the_student_starts_from_the_causal_teacher_unless_an_init_is_given(
    kinds: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    """A bidirectional start, which the stage gets if no causal teacher was trained, becomes causal."""
    new_run = kinds["ode"].new_run
    for name, init in (("causal_teacher", None), ("teacher", None), ("teacher", world / "student")):
        (tmp_path / name).mkdir(exist_ok=True)
        given = {"init": Init(folder=init, hub=None, revision=None)} if init else {}
        step = kinds["ode"].step(with_inputs(new_run(tmp_path / name, **given), start=world / name))
        assert step.student.frames_per_block == 2
        expected = load_transformer(init or world / name)
        weights = zip(step.student.model.parameters(), expected.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in weights)


# --- clean frames in the loss -----------------------------------------------------------------------------------------


def test_clean_frames_can_be_excluded_from_the_loss(kinds: dict[str, Any], tmp_path: Path) -> None:
    """Clean frames never have a gradient. If the loss excludes clean frames, means are taken over the noisy frames."""
    losses = {}
    for included in (True, False):
        step = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, batch_size=8, clean_frames_in_loss=included))
        losses[included] = step(1)["student_loss"].item()
    assert losses[False] != losses[True]


def test_the_x0_of_a_clean_frame_is_the_frame(kinds: dict[str, Any], tmp_path: Path) -> None:
    """At sigma 0 the velocity has no effect on x0.

    The option to include clean frames only changes the scale of the loss.
    """
    step = kinds["dmd"].step(kinds["dmd"].new_run(tmp_path, batch_size=8))
    batch = read_batch(step.store, seed=0, step=1, size=8, device=torch.device("cpu"))
    sample = step.source(1, batch, step.texts(batch.prompts), "student")
    clean = ~step.source.noisy(batch, "student")
    assert 0 < clean.sum() < clean.numel()
    assert torch.equal(sample.transpose(1, 2)[clean], batch.latents.transpose(1, 2)[clean])


# --- images in the training data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["data", "rollout"])
@pytest.mark.parametrize("student", ["causal", "bidirectional"])
def test_a_share_of_the_steps_trains_on_first_frames_as_images(
    student: str, inputs: str, kinds: dict[str, Any], bidirectional: Any, tmp_path: Path
) -> None:
    new_run = {"causal": kinds["dmd"].new_run, "bidirectional": bidirectional}[student]
    step = kinds["dmd"].step(
        new_run(tmp_path, inputs=inputs, steps=40, image_share=0.5, critic_updates_per_student_update=1)
    )
    shown: dict[str, list[int]] = {"student": [], "teacher": [], "critic": []}
    for name, frames in shown.items():
        network(step, name).register_forward_pre_hook(
            lambda _, args, kwargs, frames=frames: frames.append(args[0].shape[2]), with_kwargs=True
        )
    for index in range(1, 25):
        step(index)
    share = shown["teacher"].count(1) / len(shown["teacher"])
    assert set(shown["teacher"]) == set(shown["critic"]) == {1, 4}
    assert set(shown["student"]) == ({1, 2} if (student, inputs) == ("causal", "rollout") else {1, 4})
    assert 0.25 <= share <= 0.75


def test_a_share_of_images_outside_0_to_1_is_rejected(kinds: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_dmd.image_share is 1.5"):
        kinds["dmd"].new_run(tmp_path, image_share=1.5)
