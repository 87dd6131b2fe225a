"""Rows and files of samples agree, and the noise depends on the number of a sample, not on the batch or the model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos.manifest import read_manifest
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.diffusion.schedule import ScheduleConfig
from causvid.methods.vae.reconstructions import write_reconstructions
from causvid.pipeline import CausVidPipeline, load_pipeline
from causvid.preparation.samples.config import SampleConfig
from causvid.preparation.samples.sampling import sample
from causvid.record import read_record
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import VideoShape
from causvid.wan.vae.vae import decode, encode, load_vae, to_uint8, to_unit
from tests.unit.peak_memory import STATUS, VIDEO_BYTES, growth

CONFIG = SampleConfig(videos=5, batch_size=2, guidance_scale=2.0, rollouts=2, rollout_clips=2, crf=10)


def pipeline_of(world: Path, model: str, schedule: ScheduleConfig) -> CausVidPipeline:
    pipeline = load_pipeline(world / model, world / "vae", read_record(world / model), schedule)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_student_writes_samples_and_rollouts(
    world: Path, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path
) -> None:
    prompts = PromptStore(world / "prompts")
    results = sample(
        pipeline_of(world, "student", schedule), prompts, video, CONFIG, seed=0, few_steps=True, out=tmp_path / "a"
    )
    assert results == {"videos": 5, "rollouts": 2}
    rows = read_manifest(tmp_path / "a")
    assert [row["caption"] for row in rows] == prompts.evaluation[:5]
    assert [row["path"] for row in rows] == [f"{k:05d}.mp4" for k in range(5)]
    assert all(read_frames(tmp_path / "a" / row["path"]).shape == (13, 32, 32, 3) for row in rows)
    long = read_manifest(tmp_path / "a" / "rollouts")
    assert [(row["caption"], row["frames"]) for row in long] == [(prompt, 26) for prompt in prompts.evaluation[:2]]
    assert read_frames(tmp_path / "a" / "rollouts" / long[0]["path"]).shape == (26, 32, 32, 3)
    sample(
        pipeline_of(world, "student", schedule), prompts, video, CONFIG, seed=0, few_steps=True, out=tmp_path / "again"
    )
    assert contents(tmp_path / "again") == contents(tmp_path / "a")


def test_a_teacher_writes_no_rollouts(world: Path, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path) -> None:
    results = sample(
        pipeline_of(world, "teacher", schedule),
        PromptStore(world / "prompts"),
        video,
        CONFIG,
        seed=0,
        few_steps=False,
        out=tmp_path / "t",
    )
    assert results == {"videos": 5}
    assert not (tmp_path / "t" / "rollouts").exists()


def test_a_causal_teacher_also_writes_rollouts(
    world: Path, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path
) -> None:
    """Sample the weights of a student in many steps with guidance.

    The files have the same names as in few steps, but other videos.
    """
    pipeline, prompts = pipeline_of(world, "student", schedule), PromptStore(world / "prompts")
    made = {}
    for name, few_steps, scale in (("few", True, 2.0), ("many", False, 2.0), ("unguided", False, 1.0)):
        config = replace(CONFIG, videos=2, guidance_scale=scale)
        results = sample(pipeline, prompts, video, config, seed=0, few_steps=few_steps, out=tmp_path / name)
        assert results == {"videos": 2, "rollouts": 2}
        made[name] = contents(tmp_path / name)
    assert made["few"].keys() == made["many"].keys() == made["unguided"].keys()
    for path in (path for path in made["many"] if path.endswith(".mp4")):
        assert len({made[name][path] for name in made}) == 3
    assert {row["frames"] for row in read_manifest(tmp_path / "many" / "rollouts")} == {2 * video.frames}


def test_the_batch_size_does_not_change_a_video(
    world: Path, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path
) -> None:
    pipeline, prompts = pipeline_of(world, "student", schedule), PromptStore(world / "prompts")
    for size in (1, 5):
        config = replace(CONFIG, batch_size=size, rollouts=0)
        sample(pipeline, prompts, video, config, seed=0, few_steps=True, out=tmp_path / str(size))
    for k in range(5):
        one, five = (read_frames(tmp_path / folder / f"{k:05d}.mp4").astype(int) for folder in ("1", "5"))
        assert np.abs(one - five).mean() < 0.5


def test_repeated_prompts_have_different_noise(
    world: Path, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path
) -> None:
    """The ninth video of eight prompts uses the first prompt again, but is a different video."""
    prompts, config = PromptStore(world / "prompts"), replace(CONFIG, videos=9, rollouts=0)
    pipeline = pipeline_of(world, "student", schedule)
    assert sample(pipeline, prompts, video, config, seed=0, few_steps=True, out=tmp_path / "x") == {"videos": 9}
    rows = read_manifest(tmp_path / "x")
    assert [row["caption"] for row in rows] == [*prompts.evaluation, prompts.evaluation[0]]
    first, ninth = (read_frames(tmp_path / "x" / rows[k]["path"]).astype(int) for k in (0, 8))
    assert np.abs(first - ninth).mean() > 0.5


def test_reconstructions_measure_the_vae_before_compression(world: Path, video: VideoShape, tmp_path: Path) -> None:
    rows = read_manifest(world / "clips")[:2]
    scores = write_reconstructions(world / "vae", world / "clips", rows, video, crf=10, out=tmp_path / "r")
    assert scores["held_out_clips"] == 2
    written = read_manifest(tmp_path / "r")
    assert [row["caption"] for row in written] == [row["caption"] for row in rows]
    vae, psnr = load_vae(world / "vae"), []
    for row in rows:
        original = torch.from_numpy(read_frames(world / "clips" / row["path"]))
        made = to_uint8(decode(vae, encode(vae, to_unit(original)[None])))[0]
        psnr.append(10 * math.log10(255**2 / (made.double() - original.double()).square().mean().item()))
    assert scores["psnr_db"] == pytest.approx(sum(psnr) / 2, abs=1e-3)


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak from /proc")
def test_rollouts_are_written_in_constant_memory(world: Path, schedule: ScheduleConfig, tmp_path: Path) -> None:
    """Two rollouts of 793 frames need little more memory than two rollouts of 122 frames, for frames of 64 x 64 pixels.

    The additional memory is less than half of the bytes of the additional frames.
    """
    pipeline_of(world, "student", schedule).save_pretrained(tmp_path / "toy")
    shutil.copytree(world / "prompts", tmp_path / "toy" / "prompts")
    assert growth("sample", tmp_path / "toy", tmp_path / "out") < VIDEO_BYTES / 2
    rows = read_manifest(tmp_path / "out" / "long" / "rollouts")
    assert [row["frames"] for row in rows] == [13 * 61] * 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, RuntimeError])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_rollouts_write_no_file(
    world: Path,
    video: VideoShape,
    schedule: ScheduleConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
    after: int,
) -> None:
    """The folder contains no video of the interrupted batch, neither a complete file nor a part of a file."""
    whole = CausVidPipeline.rollout

    def stopping(self: CausVidPipeline, *args: Any, **kwargs: Any) -> Iterator[torch.Tensor]:
        yield from islice(whole(self, *args, **kwargs), after)
        raise stop

    monkeypatch.setattr(CausVidPipeline, "rollout", stopping)
    pipeline, prompts = pipeline_of(world, "student", schedule), PromptStore(world / "prompts")
    config = replace(CONFIG, videos=2, rollout_clips=4)
    with pytest.raises(stop):
        sample(pipeline, prompts, video, config, seed=0, few_steps=True, out=tmp_path)
    assert list((tmp_path / "rollouts").iterdir()) == []


@pytest.mark.parametrize("seed", [0, 5, 2**40])
def test_the_noise_of_a_sample_depends_on_its_number(
    world: Path, video: VideoShape, schedule: ScheduleConfig, tmp_path: Path, seed: int
) -> None:
    """The noise depends on the number of a sample or rollout.

    Recorded scores were computed with this noise.
    """
    pipeline, prompts = pipeline_of(world, "student", schedule), PromptStore(world / "prompts")
    config = replace(CONFIG, videos=2, batch_size=1)
    sample(pipeline, prompts, video, config, seed=seed, few_steps=True, out=tmp_path / "made")
    for number, caption in enumerate(prompts.evaluation[:2]):
        text, name = prompts([caption]), f"{number:05d}.mp4"
        clip = pipeline(text, video, [generator(seed, "sample", number)], few_steps=True)
        long = pipeline.rollout(text, video, [generator(seed, "rollout", number)], 26, few_steps=True)
        for frames, path in ((clip, Path(name)), (torch.cat(list(long), dim=1), Path("rollouts") / name)):
            write_video(tmp_path / "expected.mp4", frames[0].numpy(), fps=video.fps, crf=CONFIG.crf)
            assert (tmp_path / "made" / path).read_bytes() == (tmp_path / "expected.mp4").read_bytes()
