"""Sample videos during training: there, of the right size, the same for the same weights; training does not notice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from causvid.data.videos.video_reader import read_frames
from causvid.record import Normalisation
from causvid.training.trainer import CURVE
from tests.unit.training.conftest import with_inputs


class Log:
    """Stands for an MLflow run that keeps artifacts' names."""

    def __init__(self) -> None:
        self.artifacts: list[tuple[str, str]] = []

    def log_metrics(self, metrics: Any, step: int = 0) -> None:
        """Nothing."""

    def log_artifact(self, path: Path, folder: str) -> None:
        self.artifacts.append((folder, path.name))


def frames_of(work: Path, name: str) -> NDArray[np.uint8]:
    return read_frames(work / "previews" / name)


@pytest.mark.parametrize(
    ("name", "changes"), [("ode", {}), ("dmd", {}), ("dmd", {"inputs": "rollout"}), ("dmd_sharing_samples", {})]
)
def test_training_does_not_notice_that_it_is_watched(
    name: str, changes: dict[str, Any], kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Curve and weights equal to the last byte; mp4s below .work and in MLflow, the last one of the exported model."""
    alone, watched = (kinds[name].new_run(tmp_path / place, **changes) for place in ("alone", "watched"))
    log = Log()
    watched = replace(watched, watch=replace(watched.watch, samples_every=4), tracker=log)
    for run in (alone, watched):
        kinds[name].train(run)
    weights = [run.work / "export" / "diffusion_pytorch_model.safetensors" for run in (alone, watched)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (alone.work / CURVE).read_bytes() == (watched.work / CURVE).read_bytes()
    assert not (alone.work / "previews").exists()
    names = ["step-0000004.mp4", "step-0000006.mp4"]
    assert [path.name for path in sorted((watched.work / "previews").iterdir())] == names
    assert log.artifacts == [("previews", name) for name in names]
    first, last = (frames_of(watched.work, name) for name in names)
    height, width = first.shape[1:3]
    assert (height, width) == (256, watched.watch.samples * 256)  # the toy world's, large enough to be seen
    assert (first != last).any(), "two updates later it makes other videos"


def test_the_same_weights_show_the_same(kinds: dict[str, Any], tmp_path: Path) -> None:
    """No update moves weights at a learning rate of zero: every preview is the first one again."""
    run = kinds["ode"].new_run(tmp_path)
    still = replace(run.config, optimizer=replace(run.config.optimizer, learning_rate=0.0))
    kinds["ode"].train(replace(run, config=still, watch=replace(run.watch, samples_every=3)))
    one, two = (frames_of(tmp_path, f"step-000000{step}.mp4") for step in (3, 6))
    assert (one == two).all()


def test_without_a_vae_training_goes_on_unwatched(
    kinds: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who enters with released latents has none."""
    run = kinds["ode"].new_run(tmp_path / "work")
    kinds["ode"].train(replace(with_inputs(run, vae=tmp_path / "none"), watch=replace(run.watch, samples_every=3)))
    assert f"no sample videos: {tmp_path / 'none'} does not exist" in capsys.readouterr().err
    assert not (run.work / "previews").exists()
    assert (run.work / CURVE).is_file()


def test_f5_another_vae_shows_nothing(
    kinds: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is left in data/checkpoints from another run would show noise, or worse, something like videos."""
    run = kinds["ode"].new_run(tmp_path / "work")
    other = replace(run.record, latents=Normalisation(mean=(1.0,) * 4, std=(1.0,) * 4))
    kinds["ode"].train(replace(run, record=other, watch=replace(run.watch, samples_every=3)))
    assert f"no sample videos: {run.inputs['vae']} is another VAE than that of the latents" in capsys.readouterr().err
    assert not (run.work / "previews").exists()
