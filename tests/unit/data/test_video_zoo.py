"""Valid, unusual and damaged videos, and videos with flipped bits, are resampled or rejected as expected."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from causvid.data.resampling.clips import REJECTED, resample_folder
from causvid.data.resampling.config import ResampleConfig
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.runtime.shapes import VideoShape
from tests.conftest import ONE_WORKER
from tests.unit.data.source_files import write_source
from tests.unit.data.video_zoo import KEPT, fill, textured

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)
HERE = ONE_WORKER
CROP = ResampleConfig(aspect="crop", crf=8, hdr="tone_map", interlaced="deinterlace")


def _gate(folder: Path, names: list[str], out: Path, *, video: VideoShape = VIDEO) -> dict[str, str]:
    """Return the verdict on each video by name, and check that every clip that was kept is complete."""
    rows = [{"id": f"{i:06d}", "path": name, "caption": "a video", "source": name} for i, name in enumerate(names)]
    manifest.write_rows(folder / manifest.NAME, rows)
    resample_folder(folder, out, video=video, config=CROP, compute=HERE, seconds=30)
    kept, rejected = manifest.read_manifest(out), manifest.read_rows(out / REJECTED)
    assert len(kept) + len(rejected) == len(names)
    assert all(row["reason"] for row in rejected)
    for row in kept:
        assert read_frames(out / row["path"]).shape == (video.frames, video.height, video.width, 3)
    assert len(list((out / "videos").iterdir())) == len(kept)
    return {row["source"]: KEPT for row in kept} | {row["source"]: row["code"] for row in rejected}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_every_video_has_the_expected_verdict(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    zoo = fill(tmp_path / "zoo")
    assert len(zoo.verdicts) >= 60
    before = time.monotonic()
    found = _gate(zoo.folder, list(zoo.verdicts), tmp_path / "out")
    assert found == zoo.verdicts
    assert time.monotonic() - before < 30 * len(zoo.verdicts)  # no video reached its time limit
    assert "timeout" not in found.values()


def test_most_flipped_bits_are_detected_without_a_checksum(tmp_path: Path) -> None:
    """At least four in five of 200 copies with 1 to 40 wrong bits are rejected, although no checksums are known."""
    (tmp_path / "folder").mkdir()
    content = write_source(tmp_path / "whole.mp4", textured(), fps=8).read_bytes()
    dice = random.Random(0)
    names = ["whole.mp4"]
    (tmp_path / "folder" / "whole.mp4").write_bytes(content)
    for number in range(200):
        damaged = bytearray(content)
        for _ in range(dice.choice((1, 3, 10, 40))):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        names.append(f"{number:03d}.mp4")
        (tmp_path / "folder" / names[-1]).write_bytes(damaged)
    whole = VideoShape(height=32, width=32, frames=24, fps=8)  # a clip of this shape uses every frame
    found = _gate(tmp_path / "folder", names, tmp_path / "out", video=whole)
    assert found.pop("whole.mp4") == KEPT
    assert sum(verdict != KEPT for verdict in found.values()) >= 160
    assert "timeout" not in found.values()
