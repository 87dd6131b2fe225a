"""The latency is measured with many teacher steps and few student steps, as the results report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.config import LatencyConfig
from causvid.evaluation.latency import compare
from causvid.pipeline import load_pipeline
from causvid.record import read_record
from causvid.runtime.shapes import VideoShape


@pytest.mark.parametrize(("teacher", "calls_of_teacher"), [("teacher", 4), ("causal_teacher", 2 * 4 + 1)])
def test_teacher_and_student_run_the_reported_numbers_of_steps(
    teacher: str, calls_of_teacher: int, world: Path, video: VideoShape, schedule: ScheduleConfig
) -> None:
    """A causal teacher runs four steps in each of two blocks and one context pass. Guidance doubles the batch."""
    rows: dict[str, list[int]] = {"teacher": [], "student": []}
    pipelines = {}
    for name, folder in (("teacher", teacher), ("student", "student")):
        pipelines[name] = load_pipeline(world / folder, world / "vae", read_record(world / folder), schedule)
        pipelines[name].set_progress_bar_config(disable=True)
        pipelines[name].transformer.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: rows[name].append(len(args[0])), with_kwargs=True
        )
    text = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    found = compare(
        **pipelines, text=text[:1], negative=text[1:], video=video, guidance_scale=2.0, seed=0,
        config=LatencyConfig(warmup=0, repeats=1),
    )  # fmt: skip
    assert rows == {"teacher": [2] * calls_of_teacher, "student": [1] * (2 * 3 + 1)}
    for name in ("teacher", "student"):
        assert 0 < found[name]["first_frame_s"] <= found[name]["seconds"]
        assert found[name]["fps"] == pytest.approx(video.frames / found[name]["seconds"])
    assert (found["teacher"]["passes"], found["student"]["passes"]) == (8, 3)
    assert found["other_load"] >= 0
    # A bidirectional teacher shows all frames at once. The blocks of a causal model have 5 and 8 frames.
    blocks = [5, 8]
    assert found["teacher"]["frames"] == ([video.frames] if teacher == "teacher" else blocks)
    assert found["student"]["frames"] == blocks
    for name in ("teacher", "student"):
        ready = found[name]["ready_s"]
        assert len(ready) == len(found[name]["frames"])
        assert sorted(ready) == ready
        assert (ready[0], ready[-1]) == (found[name]["first_frame_s"], found[name]["seconds"])
