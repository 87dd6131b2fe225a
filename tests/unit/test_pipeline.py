"""The pipeline generates clips, streams and rollouts with teachers and students, for single videos and batches."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.diffusion.schedule import ScheduleConfig
from causvid.pipeline import CausVidPipeline
from causvid.runtime.shapes import VideoShape
from causvid.sampling.autoregressive import generate_blocks, solve_blocks
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.transformer.wan import as_causal, build_transformer, load_transformer
from causvid.wan.vae.vae import decode, encode, load_vae, to_uint8

TEXT = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def settings(kind: str, *, scale: float) -> dict[str, Any]:
    """Return the arguments of a call: few steps for a student, or many steps with guidance for other models."""
    if kind == "student":
        return {"few_steps": True}
    return {"few_steps": False, "negative_embeds": TEXT[:1] * 0.5, "guidance_scale": scale}


def whole(chunks: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return all frames of a rollout as a single tensor."""
    return torch.cat(list(chunks), dim=1)


def pipeline_of(
    world: Path, transformer: Any, schedule: ScheduleConfig, dtype: torch.dtype = torch.float32
) -> CausVidPipeline:
    pipeline = CausVidPipeline(
        vae=load_vae(world / "vae", dtype),
        transformer=transformer,
        shift=schedule.shift,
        solver_steps=schedule.solver_steps,
        denoising_timesteps=schedule.denoising_timesteps,
        context_timestep=schedule.context_timestep,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def student(world: Path, schedule: ScheduleConfig) -> CausVidPipeline:
    return pipeline_of(world, load_transformer(world / "student").eval(), schedule)


@pytest.fixture(scope="module")
def teacher(world: Path, schedule: ScheduleConfig) -> CausVidPipeline:
    return pipeline_of(world, load_transformer(world / "teacher").eval(), schedule)


@pytest.fixture(scope="module")
def causal(world: Path, schedule: ScheduleConfig) -> CausVidPipeline:
    """Return a causal model of many steps that has the weights of the student."""
    return pipeline_of(world, load_transformer(world / "student").eval(), schedule)


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Check that values differ by at most one of 255 levels, and that less than 1 % of the values differ."""
    difference = (ours.int() - theirs.int()).abs()
    assert ours.shape == theirs.shape
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-2


@pytest.mark.parametrize("kind", ["student", "teacher", "causal"])
def test_a_video_does_not_depend_on_its_batch(kind: str, video: VideoShape, request: pytest.FixtureRequest) -> None:
    pipeline: CausVidPipeline = request.getfixturevalue(kind)
    guidance = settings(kind, scale=3.0)
    together = pipeline(TEXT, video, generators(1, 2, 3), **guidance)
    assert together.shape == (3, 13, 32, 32, 3)
    assert together.dtype == torch.uint8
    for k in range(3):
        assert_alike(pipeline(TEXT[k : k + 1], video, generators(k + 1), **guidance), together[k : k + 1])
    assert_alike(pipeline(TEXT.flip(0), video, generators(3, 2, 1), **guidance), together.flip(0))
    assert (together[0].int() - together[1].int()).abs().max() > 1


@pytest.mark.parametrize("kind", ["student", "teacher", "causal"])
def test_latents_do_not_depend_on_the_batch_up_to_rounding(
    kind: str, video: VideoShape, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the latents that the decoder receives in different batches."""
    from causvid import pipeline as module

    pipeline: CausVidPipeline = request.getfixturevalue(kind)
    given: list[torch.Tensor] = []

    class Spy(module.StreamingDecoder):
        def __call__(self, latents: torch.Tensor) -> torch.Tensor:
            given.append(latents)
            return super().__call__(latents)

    def spying(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        given.append(latents)
        return decode(vae, latents)

    monkeypatch.setattr(module, "StreamingDecoder", Spy)
    monkeypatch.setattr(module, "decode", spying)
    pipeline(TEXT, video, generators(1, 2, 3), **settings(kind, scale=3.0))
    together = torch.cat(given, dim=2)
    given.clear()
    pipeline(TEXT[1:2], video, generators(2), **settings(kind, scale=3.0))
    torch.testing.assert_close(torch.cat(given, dim=2), together[1:2], rtol=1e-5, atol=1e-5)


def test_teacher_and_student_start_from_the_same_noise(
    teacher: CausVidPipeline, student: CausVidPipeline, video: VideoShape
) -> None:
    noise = []
    for pipeline, few_steps in ((teacher, False), (student, False), (student, True)):
        hook = pipeline.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: noise.append(args[0].clone()), with_kwargs=True
        )
        pipeline(TEXT[:1], video, generators(7), few_steps=few_steps)
        hook.remove()
    # A clip of the teacher has four steps. With many steps, each of two blocks has four steps, with a context pass
    # between.
    first_of_teacher, first_of_many, first_of_few = noise[0], noise[4], noise[4 + 9]
    assert torch.equal(first_of_teacher[:, :, :2], first_of_many)
    assert torch.equal(first_of_teacher[:, :, :2], first_of_few)


def test_every_renoising_uses_new_noise(
    student: CausVidPipeline, video: VideoShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    noise_of = CausVidPipeline._noise

    def spying(self: CausVidPipeline, *args: Any) -> torch.Tensor:
        drawn.append(noise_of(self, *args))
        return drawn[-1]

    monkeypatch.setattr(CausVidPipeline, "_noise", spying)
    student(TEXT[:1], video, generators(1), few_steps=True)
    # A clip uses its initial noise, and then new noise in two renoising steps per block.
    assert [noise.shape[2] for noise in drawn] == [4, 2, 2, 2, 2]
    frames = torch.cat(drawn, dim=2)[0].transpose(0, 1).flatten(1)
    assert torch.pdist(frames).min() > 1  # any two draws of noise differ in every frame


def test_a_stream_yields_the_frames_of_the_video_by_block(student: CausVidPipeline, video: VideoShape) -> None:
    for how in (settings("student", scale=3.0), settings("causal", scale=3.0)):
        parts = list(student.stream(TEXT[:2], video, generators(1, 2), **how))
        # the first block has 1 + 4 frames, the second block has 2 x 4 frames
        assert [part.shape for part in parts] == [(2, 5, 32, 32, 3), (2, 8, 32, 32, 3)]
        assert torch.equal(torch.cat(parts, dim=1), student(TEXT[:2], video, generators(1, 2), **how))


def test_the_first_frames_need_only_forward_passes_of_the_first_block(
    student: CausVidPipeline, video: VideoShape
) -> None:
    calls: list[int] = []
    hook = student.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = student.stream(TEXT[:1], video, generators(1), few_steps=True)
    next(stream)
    assert len(calls) <= 4  # a block has three denoising steps and one context pass
    list(stream)
    hook.remove()
    assert len(calls) == 7


def test_guidance_affects_many_steps_only(
    teacher: CausVidPipeline, student: CausVidPipeline, video: VideoShape
) -> None:
    for pipeline, few_steps in ((teacher, False), (student, False), (teacher, True), (student, True)):
        plain, strong, other = (
            pipeline(TEXT[:1], video, generators(1), negative, scale, few_steps=few_steps)
            for negative, scale in ((TEXT[1:2], 1.0), (TEXT[1:2], 6.0), (TEXT[2:], 6.0))
        )
        assert torch.equal(plain, strong) == few_steps
        assert torch.equal(strong, other) == few_steps


def test_many_steps_of_a_causal_model_run_the_solver_in_every_block(
    causal: CausVidPipeline, video: VideoShape, schedule: ScheduleConfig
) -> None:
    """The forward passes have both prompts of guidance in one batch and the sigmas of the grid.

    There is one context pass.
    """
    calls: list[tuple[int, int, float]] = []
    hook = causal.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((len(args[0]), kwargs["start_frame"], kwargs["timestep"][0, 0].item())),
        with_kwargs=True,
    )
    causal(TEXT[:2], video, generators(1, 2), **settings("causal", scale=3.0))
    hook.remove()
    grid = (schedule.grid.sigmas(4)[:-1] * 1000).tolist()
    assert [call[:2] for call in calls] == [(4, 0)] * 5 + [(4, 2)] * 4
    assert [time for *_, time in calls] == pytest.approx([*grid, 0.0, *grid])


def test_a_rollout_has_the_given_length_and_starts_like_a_clip(student: CausVidPipeline, video: VideoShape) -> None:
    clip = student(TEXT[:1], video, generators(5), few_steps=True)
    for frames in (13, 14, 21, 29, 39):
        long = whole(student.rollout(TEXT[:1], video, generators(5), frames, few_steps=True))
        assert long.shape == (1, frames, 32, 32, 3)
        # the first window except its last block, which belongs to the next window
        assert_alike(long[:, :8], clip[:, :8])


def test_a_rollout_in_many_steps_is_guided_in_every_window(causal: CausVidPipeline, video: VideoShape) -> None:
    """A rollout of six clips with another guidance scale differs in every frame."""
    how = settings("causal", scale=3.0)
    long = whole(causal.rollout(TEXT[:2], video, generators(5, 6), 6 * 13, **how))
    assert long.shape == (2, 78, 32, 32, 3)
    assert_alike(long[:, :8], causal(TEXT[:2], video, generators(5, 6), **how)[:, :8])
    other = whole(causal.rollout(TEXT[:2], video, generators(5, 6), 6 * 13, **{**how, "guidance_scale": 1.0}))
    assert (long[:, 8:].int() - other[:, 8:].int()).abs().amax(dim=(0, 2, 3, 4)).min() > 0
    assert not torch.equal(long[:, :8], other[:, :8])


@pytest.mark.parametrize(
    ("kind", "makes", "context_at"), [("student", generate_blocks, 5), ("causal", solve_blocks, 6)]
)
def test_rollout_windows_overlap_by_a_re_encoded_block(
    kind: str,
    makes: Any,
    context_at: int,
    student: CausVidPipeline,
    video: VideoShape,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first frame of the last block is encoded again, as in the original CausVid script.

    The other latents of the last block are reused.
    """
    contexts: list[torch.Tensor | None] = []
    windows: list[torch.Tensor] = []

    def spying(*args: Any, **kwargs: Any) -> Any:
        contexts.append(args[context_at])
        blocks = list(makes(*args, **kwargs))
        windows.append(torch.cat(blocks, dim=2))
        return iter(blocks)

    monkeypatch.setattr(f"causvid.pipeline.{makes.__name__}", spying)
    shown = whole(student.rollout(TEXT[:1], video, generators(5), 3 * 13, **settings(kind, scale=3.0)))
    assert contexts[0] is None
    pixels = [decode(student.vae, window) for window in windows]
    for context, window, decoded in zip(contexts[1:], windows, pixels, strict=False):
        assert context is not None
        assert torch.equal(context[:, :, 1:], window[:, :, 3:])
        torch.testing.assert_close(context[:, :, :1], encode(student.vae, decoded[:, :, -5:-4]), rtol=1e-5, atol=1e-5)
    for context, window in zip(contexts[1:], windows[1:], strict=True):
        assert torch.equal(window[:, :, :2], context)
    # Each window shows 8 of its 13 frames, and the last window also shows its last block: 5 windows for 39 of 45
    # frames.
    assert len(windows) == 5
    expected = torch.cat([*(p[:, :, :8] for p in pixels), pixels[-1][:, :, 8:]], dim=2)
    assert torch.equal(shown, to_uint8(expected[:, :, :39]))


def test_models_that_cannot_stream_or_roll_out_are_refused(
    teacher: CausVidPipeline, world: Path, video: VideoShape, schedule: ScheduleConfig
) -> None:
    with pytest.raises(ValueError, match="needs a causal model, but this pipeline has a bidirectional one"):
        next(teacher.stream(TEXT[:1], video, generators(1), few_steps=False))
    whole = as_causal(load_transformer(world / "teacher"), 4).eval()
    with pytest.raises(ValueError, match="model.frames_per_block is the whole clip"):
        pipeline_of(world, whole, schedule).rollout(TEXT[:1], video, generators(1), 39, few_steps=True)


def test_a_rollout_of_a_bidirectional_teacher_is_refused(teacher: CausVidPipeline, video: VideoShape) -> None:
    with pytest.raises(ValueError, match="causal model"):
        teacher.rollout(TEXT[:1], video, generators(1), 39, few_steps=False)


# --- memory and seeds -------------------------------------------------------------------------------------------------


def live_bytes() -> int:
    """Return the number of bytes of all tensors that Python can reach."""
    storages = {}
    for found in gc.get_objects():
        # isinstance is not used, because some objects warn when they are inspected, and fake tensors have no data.
        if type(found) in (torch.Tensor, torch.nn.Parameter):
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["student", "causal"])
def test_a_rollout_of_any_length_holds_one_window_in_memory(kind: str, student: CausVidPipeline) -> None:
    """While the caller uses the frames of a window, only these frames and the start of the next window are stored."""
    video, most = VideoShape(height=64, width=64, frames=13, fps=8), []
    for frames in (29, 64, 131):
        before, held, made = live_bytes(), [], 0
        for chunk in student.rollout(TEXT[:2], video, generators(1, 2), frames, **settings(kind, scale=3.0)):
            held.append(live_bytes() - before)
            made += chunk.shape[1]
        assert (made, chunk.device.type, chunk.dtype) == (frames, "cpu", torch.uint8)
        most.append(max(held))
    assert max(most) <= most[0] < 2 * 29 * 64 * 64 * 3  # fewer bytes than the shortest rollout as uint8
    del chunk


@pytest.mark.parametrize(("frames", "sink"), [(13, 0), (21, 2), (29, 4)])
def test_an_endless_stream_holds_one_window_in_memory(student: CausVidPipeline, frames: int, sink: int) -> None:
    """The first three blocks of a stream allocate memory, and later blocks allocate no more memory."""
    video, held = VideoShape(height=32, width=32, frames=frames, fps=8), []
    for _ in islice(student.stream(TEXT[:1], video, generators(1), sink, few_steps=True), 12):
        held.append(live_bytes())
    assert len(held) == 12
    assert max(held[3:]) == held[2]


@pytest.mark.parametrize(("frames", "sizes"), [(6, [6]), (13, [13]), (14, [8, 6]), (22, [8, 8, 6]), (30, [8, 8, 8, 6])])
def test_frames_of_a_window_are_yielded_before_the_next_window_is_computed(
    student: CausVidPipeline, video: VideoShape, frames: int, sizes: list[int]
) -> None:
    """For lengths of 14, 22 and 30 frames, the last window has a single frame."""
    calls: list[int] = []
    hook = student.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for chunk in student.rollout(TEXT[:1], video, generators(5), frames, few_steps=True):
        found.append((chunk.shape[1], len(calls)))
    hook.remove()
    assert [size for size, _ in found] == sizes
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(found))


def test_an_invalid_rollout_is_refused_before_its_first_frame(
    teacher: CausVidPipeline, student: CausVidPipeline, video: VideoShape
) -> None:
    for pipeline, frames, said in (
        (teacher, 39, "needs a causal model, but this pipeline has a bidirectional one"),
        (student, 5, "a rollout of 5 frames is not longer than its first block of 5"),
        (student, 0, "a rollout of 0 frames"),
        (student, -3, "a rollout of -3 frames"),
    ):
        with pytest.raises(ValueError, match=said):
            pipeline.rollout(TEXT[:1], video, generators(1), frames, few_steps=True)


@pytest.mark.parametrize("seeds", [(0, 1, 2), (7, 7, 7), (2**32 - 1, 0, 2**31)])
@pytest.mark.parametrize("frames", [13, 30, 101])
def test_a_rollout_does_not_depend_on_its_batch(
    student: CausVidPipeline, video: VideoShape, seeds: tuple[int, ...], frames: int
) -> None:
    """Equal batches give equal bytes. In different batches, values differ by at most one of 255 levels."""

    def made(order: tuple[int, ...]) -> torch.Tensor:
        noise = generators(*(seeds[k] for k in order))
        return whole(student.rollout(TEXT[list(order)], video, noise, frames, few_steps=True))

    together = made((0, 1, 2))
    assert torch.equal(together, made((0, 1, 2)))
    for order in ((2, 0, 1), (1, 2), (0,), (2, 2)):
        assert_alike(made(order), together[list(order)])


def test_an_endless_stream_attends_to_the_sink_and_the_latest_blocks(
    student: CausVidPipeline, video: VideoShape
) -> None:
    """A stream does not repeat itself, and the sink changes the blocks after the window is full."""
    few = {"few_steps": True}
    parts = list(islice(student.stream(TEXT[:1], video, generators(1), sink_frames=0, **few), 10))
    # A block has two latent frames. The first latent frame of a stream is one frame; each later latent frame is four
    # frames.
    assert [part.shape[1] for part in parts] == [5] + [8] * 9
    assert len({part.numpy().tobytes() for part in parts}) == 10
    longer = VideoShape(height=32, width=32, frames=1 + 4 * 5, fps=8)  # six latent frames are three blocks
    sunk = list(islice(student.stream(TEXT[:1], longer, generators(1), sink_frames=2, **few), 8))
    free = list(islice(student.stream(TEXT[:1], longer, generators(1), sink_frames=0, **few), 8))
    alike = [torch.equal(a, b) for a, b in zip(sunk, free, strict=True)]
    assert alike[:3] == [True] * 3  # in the first three blocks, the window is not full
    assert not any(alike[3:])
    with pytest.raises(ValueError, match=r"num_frames is 4; a sliding KV cache needs .* at least one besides its sink"):
        next(student.stream(TEXT[:1], video, generators(1), sink_frames=4, **few))


def test_a_number_of_frames_that_the_vae_does_not_support_is_refused(student: CausVidPipeline) -> None:
    with pytest.raises(ValueError, match="video.frames is 12"):
        student(TEXT[:1], VideoShape(height=32, width=32, frames=12, fps=8), generators(1), few_steps=True)


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_saved_pipeline_is_loaded_unchanged(
    kind: str, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pipeline: CausVidPipeline = request.getfixturevalue(kind)
    pipeline.save_pretrained(tmp_path)
    loaded = CausVidPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.transformer) is type(pipeline.transformer)
    assert loaded.schedule == schedule
    how = settings(kind, scale=3.0)
    assert torch.equal(loaded(TEXT[:1], video, generators(1), **how), pipeline(TEXT[:1], video, generators(1), **how))
    if kind == "student":
        assert isinstance(loaded.transformer, CausalWanTransformer3DModel)
        assert loaded.transformer.config.frames_per_block == 2


# torch warns about a slower kernel for norm_q
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_bfloat16_gives_similar_frames(
    kind: str, world: Path, video: VideoShape, schedule: ScheduleConfig, request: pytest.FixtureRequest
) -> None:
    half = pipeline_of(world, load_transformer(world / kind, torch.bfloat16).eval(), schedule, torch.bfloat16)
    guidance = settings(kind, scale=2.0)
    frames = half(TEXT[:1], video, generators(1), **guidance)
    full = request.getfixturevalue(kind)(TEXT[:1], video, generators(1), **guidance)
    assert (frames.float() - full.float()).abs().mean() < 12  # the limit is 12 of 255 levels


def test_the_default_schedule_is_that_of_the_original_causvid_code(
    world: Path, transformer_config: dict[str, Any]
) -> None:
    pipeline = CausVidPipeline(vae=load_vae(world / "vae"), transformer=build_transformer(transformer_config, 0))
    assert pipeline.schedule.columns() == [0, 36, 44, 50]
