"""Create a small finished run: metrics, curves and videos in the format of the stages, with invented numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causvid import params
from causvid.data.videos import manifest
from causvid.data.videos.video_writer import write_video
from causvid.diffusion.schedule import ScheduleConfig
from causvid.reporting import content as contents
from causvid.reporting.ablation import CLAIMS, DRAWN, FAILS, HOLDS, MEASURES, ROWS, UNRESOLVED
from causvid.reporting.content import Content
from causvid.runtime.shapes import VideoShape

PUBLISHED = params.ROOT / "data/inputs/published.yaml"
VIDEO = VideoShape(height=32, width=32, frames=5, fps=8)
SCHEDULE = ScheduleConfig(shift=3.0, solver_steps=20, denoising_timesteps=(1000, 750, 500, 250), context_timestep=0)
SHIFTS = {"clips": 0.0, "reconstruction": 0.1, "teacher": 0.2, "causal_teacher": 0.25, "ode_init": 0.3, "dmd": 0.4}
CAPTIONS = {"00000": "a red square moves left", "00001": "costs $5 & <b>more</b>", "00002": "雪"}


def _evaluation(shift: float) -> dict[str, Any]:
    """Return the scores of one set of videos. All scores are lowered by ``shift``."""
    judge = {
        "colour": 1 - shift,
        "background": 1.0,
        "shape": 0.9,
        "motion": 0.8,
        "velocity": 0.75 - shift,
        "area_cv": None,
    }
    brightness, skipped = {"windows": [0.25, 0.5], "change": 0.25}, {"aesthetic_quality": "lacks clip.pt"}
    windows = [dict(judge, velocity=0.7), dict(judge, velocity=0.6)]
    return {
        "n": 128,
        "judge": {**judge, "frame_psnr": 26.94, "blocks": [{"velocity": 0.5 - shift}, {"velocity": 0.875}]},
        "frechet_distance": 3.25,
        "frechet_interval": [3.0, 3.5],
        "flicker": 0.0312,
        "drift": {"n": 2, "windows": 2, "window_frames": 5, "statistics": {"brightness": brightness}, "judge": windows},
        "vbench": {"version": "0.1.5", "scores": {"temporal_flickering": 0.9712}, "skipped": skipped},
        "key": "0123",
    }  # fmt: skip


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Return the folder reports/ of a finished run."""
    folder = tmp_path / "reports"
    metrics: dict[str, Any] = {
        "download": {"videos": 12, "key": "a"},
        "resample": {"kept": 9, "rejected": 3, "rejected_by_code": {"too_short": 2, "unreadable": 1}, "key": "b"},
        "train_vae": {"psnr_db": 28.61, "steps": 1500, "loss": 0.00123456},
        "train_teacher": {"steps": 1600, "loss": 0.5},
        "train_causal_teacher": {"steps": 0, "start": "weights/causal", "model": "causal"},
        "train_ode_init": {"steps": 600, "loss": 0.25, "start": "data/checkpoints/causal_teacher"},
        "train_dmd": {"steps": 400, "critic_loss": 0.5},
        "generate_ode_pairs": {"pairs": 896},
        "measure_latency": {
            "device": "CPU, 2 threads",
            "teacher": {
                "first_frame_s": 2.0,
                "fps": 16.5,
                "seconds": 2.0,
                "passes": 40,
                "ready_s": [2.0],
                "frames": [5],
            },
            "student": {
                "first_frame_s": 0.125,
                "fps": 66.0,
                "seconds": 0.5,
                "passes": 4,
                "ready_s": [0.125, 0.5],
                "frames": [1, 4],
            },
            "ratio": {"first_frame": 16.0, "fps": 4.0},
        },
    }
    files = {folder / name / "metrics.json": value for name, value in metrics.items()}
    files |= {folder / "evaluate" / f"{name}.json": _evaluation(shift) for name, shift in SHIFTS.items()}
    frozen = {"judge": {"velocity": 0.125}, "table4": {"temporal": 33.3}, "frechet_distance": 187.0}
    files[folder / "evaluate" / "clips.json"] |= {"floors": {"frozen": frozen}}
    for path, value in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    (folder / "train_teacher" / "curve.csv").write_text("step,loss\n0,1.5\n1,1.0\n2,0.5\n")
    (folder / "train_dmd" / "curve.csv").write_text(
        "step,critic_loss,student_loss\n0,1.5,\n1,1.0,0.2\n2,0.5,\n3,0.4,0.1\n"
    )
    return folder


@pytest.fixture
def ablated(reports: Path) -> Path:
    """Return the folder reports/ of a run with an ablation."""
    rows = {row: {"mean": 0.4 + k * 0.034, "se": 0.011} for k, row in enumerate(ROWS)}
    tests = [f"{claim.name}/{measure}" for claim in CLAIMS for measure in claim.measures]
    verdicts = [HOLDS, FAILS, UNRESOLVED]
    points = [{"mean": 0.5 + k / 10, "se": 0.01} for k in range(3)]
    curve = {"blocks": {"velocity": [{"mean": None, "se": None}, *points]}, "windows": {"velocity": points}}
    table4 = {
        "seeds": 3,
        "prompts": 32,
        "videos": 256,
        "profile": "laptop",
        "commit": {"sha": "0123456789abcdef", "dirty": True},
        "rows": {row: dict.fromkeys(MEASURES, value) for row, value in rows.items()},
        "costs": {row: {"updates": 1000 * k, "flops": k * 1.5e12} for k, row in enumerate(ROWS)},
        "claims": {name: verdicts[k % 3] for k, name in enumerate(sorted(tests, reverse=True))},
        "gaps": {name: {"mean": 0.1, "se": 0.01} for name in tests},
        "curves": dict.fromkeys(DRAWN, curve),
    }
    table4["claims"]["ode_init_only_is_worse/frame"] = HOLDS
    (reports / "ablate").mkdir()
    (reports / "ablate" / "table4.json").write_text(json.dumps(table4))
    return reports


def _add_videos(folder: Path, frames: int, brightness: int) -> None:
    """Write a folder of samples with its manifest."""
    folder.mkdir(parents=True)
    rows = []
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        clip = np.full((frames, 32, 32, 3), brightness + number, np.uint8)
        write_video(folder / f"{name}.mp4", clip, fps=8, crf=10)
        rows.append({"id": name, "path": f"{name}.mp4", "caption": caption, "frames": frames})
    manifest.write_rows(folder / manifest.NAME, rows)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Return the folder data/samples of a finished run."""
    folder = tmp_path / "samples"
    for number, name in enumerate(("reconstruction", "teacher", "causal_teacher", "ode_init", "dmd")):
        _add_videos(folder / name, 5, 40 * number)
    for number, name in enumerate(("causal_teacher", "ode_init", "dmd")):
        _add_videos(folder / name / "rollouts", 13, 100 + 40 * number)
    return folder


Collect = Callable[[Path, Path], Content]


@pytest.fixture
def published() -> Path:
    """Return the path of a file with published numbers."""
    return PUBLISHED


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """Return the scores of one set of videos."""
    return _evaluation(0.0)


@pytest.fixture
def captions() -> dict[str, str]:
    """Return the captions of the samples by id."""
    return CAPTIONS


@pytest.fixture
def collect() -> Collect:
    """Return a function that maps the folders of reports and samples to the content of the report."""

    def from_folders(reports: Path, samples: Path) -> Content:
        return contents.collect(reports, samples, PUBLISHED, profile="smoke", video=VIDEO, schedule=SCHEDULE, rows=2)

    return from_folders


@pytest.fixture
def content(collect: Collect, reports: Path, samples: Path) -> Content:
    """Return the content of the report of the finished run."""
    return collect(reports, samples)
