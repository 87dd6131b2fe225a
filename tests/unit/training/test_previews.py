"""Preview videos have the right size, depend on the weights only, and do not change the training."""

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
    """A tracker that records the names of artifacts."""

    def __init__(self) -> None:
        self.artifacts: list[tuple[str, str]] = []

    def log_metrics(self, metrics: Any, step: int = 0) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str) -> None:
        self.artifacts.append((folder, path.name))


def frames_of(work: Path, name: str) -> NDArray[np.uint8]:
    return read_frames(work / "previews" / name)


@pytest.mark.parametrize(
    ("name", "changes"), [("ode", {}), ("dmd", {}), ("dmd", {"inputs": "rollout"}), ("dmd_sharing_samples", {})]
)
def test_previews_do_not_change_the_training(
    name: str, changes: dict[str, Any], kinds: dict[str, Any], tmp_path: Path
) -> None:
    """Training with and without previews writes the same curve and weights.

    The last preview shows the exported model.
    """
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
    assert (height, width) == (256, watched.watch.samples * 256)  # the pixels of toy videos are enlarged
    assert (first != last).any(), "two updates must change the preview"


def test_the_same_weights_give_the_same_preview(kinds: dict[str, Any], tmp_path: Path) -> None:
    """A learning rate of zero changes no weight, so all previews are equal."""
    run = kinds["ode"].new_run(tmp_path)
    still = replace(run.config, optimizer=replace(run.config.optimizer, learning_rate=0.0))
    kinds["ode"].train(replace(run, config=still, watch=replace(run.watch, samples_every=3)))
    one, two = (frames_of(tmp_path, f"step-000000{step}.mp4") for step in (3, 6))
    assert (one == two).all()


def test_without_a_vae_training_has_no_previews(
    kinds: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training on latents of the original CausVid code has no VAE."""
    run = kinds["ode"].new_run(tmp_path / "work")
    kinds["ode"].train(replace(with_inputs(run, vae=tmp_path / "none"), watch=replace(run.watch, samples_every=3)))
    assert f"no sample videos: {tmp_path / 'none'} does not exist" in capsys.readouterr().err
    assert not (run.work / "previews").exists()
    assert (run.work / CURVE).is_file()


def test_with_another_vae_there_are_no_previews(
    kinds: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The VAE in data/checkpoints may belong to another run. Previews would then show noise or wrong videos."""
    run = kinds["ode"].new_run(tmp_path / "work")
    other = replace(run.record, latents=Normalisation(mean=(1.0,) * 4, std=(1.0,) * 4))
    kinds["ode"].train(replace(run, record=other, watch=replace(run.watch, samples_every=3)))
    assert f"no sample videos: {run.inputs['vae']} is another VAE than that of the latents" in capsys.readouterr().err
    assert not (run.work / "previews").exists()
