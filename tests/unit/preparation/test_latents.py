"""Encoding skips finished clips, and the latents do not depend on which clips are finished."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causvid.compute.precision import Precision
from causvid.data.shards import REJECTED, indexed, read_shard, shard_path
from causvid.data.videos.manifest import read_manifest, read_rows
from causvid.data.videos.video_reader import read_frames
from causvid.preparation.latents.config import LatentConfig
from causvid.preparation.latents.encoding import LatentEncoder, extract_latents
from causvid.runtime.shapes import VideoShape
from causvid.wan.vae.vae import encode, load_vae, to_unit
from tests.conftest import ONE_WORKER

HERE = ONE_WORKER
CONFIG = LatentConfig(batch_size=3)


@pytest.fixture
def job(world: Path, video: VideoShape, tmp_path: Path) -> LatentEncoder:
    return LatentEncoder(
        clips=world / "clips", vae=world / "vae", out=tmp_path / "out", video=video, precision=Precision.FLOAT32
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_every_clip_has_a_shard_with_its_caption(job: LatentEncoder, world: Path) -> None:
    assert extract_latents(job, CONFIG, HERE) == {"clips": 8, "rejected": 0, "resumed": 0}
    vae = load_vae(world / "vae")
    rows = read_manifest(world / "clips")
    assert indexed(job.out) == shards(job.out) == [shard_path(job.out, row["id"]) for row in rows]
    for row in rows:
        shard = read_shard(shard_path(job.out, row["id"]))
        assert shard.notes == {"caption": row["caption"]}
        clip = to_unit(torch.from_numpy(read_frames(world / "clips" / row["path"])))[None]
        torch.testing.assert_close(shard.latents.float(), encode(vae, clip)[0], rtol=1e-3, atol=1e-3)


def test_a_killed_extraction_continues_and_gives_the_same_bytes(job: LatentEncoder, tmp_path: Path) -> None:
    extract_latents(job, CONFIG, HERE)
    whole = contents(job.out)
    resumed = replace(job, out=tmp_path / "resumed")
    resumed.out.mkdir()
    # keep all clips of the first group of three, and one clip of the second group
    kept = [path.name for path in shards(job.out)][:4]
    for name in kept:
        (resumed.out / name).write_bytes(whole[name])
    (resumed.out / f"{shards(job.out)[4].stem}.killed.tmp").write_bytes(b"half a shard")
    assert extract_latents(resumed, CONFIG, HERE) == {"clips": 8, "rejected": 0, "resumed": 3}
    assert contents(resumed.out) == whole
    assert extract_latents(resumed, CONFIG, HERE) == {"clips": 8, "rejected": 0, "resumed": 8}


def test_a_clip_of_another_size_is_named(job: LatentEncoder) -> None:
    wrong = replace(job, video=VideoShape(height=32, width=32, frames=17, fps=8))
    with pytest.raises(
        ValueError, match=r"clip 00000 has shape \(13, 32, 32, 3\), not \(17, 32, 32, 3\); run resample"
    ):
        extract_latents(wrong, CONFIG, HERE)


def test_only_a_damaged_clip_is_rejected(job: LatentEncoder, world: Path, tmp_path: Path) -> None:
    extract_latents(job, LatentConfig(batch_size=1), HERE)
    damaged = replace(job, clips=tmp_path / "clips", out=tmp_path / "damaged")
    shutil.copytree(world / "clips", damaged.clips)
    row = read_manifest(damaged.clips)[5]
    (damaged.clips / row["path"]).write_bytes(b"not a video")
    assert extract_latents(damaged, LatentConfig(batch_size=1), HERE) == {"clips": 7, "rejected": 1, "resumed": 0}
    whole, found = contents(job.out), contents(damaged.out)
    assert {name: whole[name] for name in found if name.endswith(".safetensors")}.items() <= found.items()
    (rejected,) = read_rows(damaged.out / REJECTED)
    assert (rejected["id"], rejected["code"]) == (row["id"], "unreadable")
    assert "cannot be decoded" in rejected["reason"]
    assert row["id"] not in [path.stem for path in indexed(damaged.out)]


def test_half_precision_gives_similar_latents(job: LatentEncoder, tmp_path: Path) -> None:
    extract_latents(job, CONFIG, HERE)
    half = replace(job, out=tmp_path / "half", precision=Precision.BFLOAT16)
    extract_latents(half, CONFIG, HERE)
    for path in shards(job.out):
        ours, theirs = read_shard(path).latents.float(), read_shard(half.out / path.name).latents.float()
        assert not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.05 * ours.norm()
