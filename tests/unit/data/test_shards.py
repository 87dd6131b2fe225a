"""A shard is complete or absent, and the same content gives the same bytes."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causvid.data.shards import Shard, finish, indexed, read_shard, shard_path, write_shard


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(notes=st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3))
def test_a_shard_is_read_as_it_was_written(notes: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        write_shard(Path(folder), "0001", Shard(latents(), notes))
        found = read_shard(shard_path(Path(folder), "0001"))
        assert found.latents.dtype == torch.float16
        assert torch.equal(found.latents, latents().half())
        assert found.notes == notes
        assert [p.name for p in Path(folder).iterdir()] == ["0001.safetensors"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Without the code under test, safetensors would write metadata entries in a different order each time."""
    notes = {"caption": "x", "timesteps": "[1]", "third": ""}
    other_strides = latents().transpose(2, 3).contiguous().transpose(2, 3)
    for name in range(20):
        write_shard(tmp_path, str(name), Shard(other_strides if name % 2 else latents(), notes))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_killed_write_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_shard(tmp_path, "0001", Shard(latents(), {}))
    assert not shard_path(tmp_path, "0001").exists()
    write_shard(tmp_path, "0001", Shard(latents(), {}))
    (tmp_path / ".tmpLoWOEp").write_bytes(b"safetensors was killed here")
    finish(tmp_path, [{"id": "0001", "caption": "x"}], [])
    left = {path.name for path in tmp_path.iterdir()}  # the write deleted the leftovers of the killed process
    assert left == {"0001.safetensors", "manifest.jsonl", "rejected.jsonl"}


def test_the_index_must_list_exactly_the_shards(tmp_path: Path) -> None:
    rows = [{"id": name, "caption": name} for name in ("0002", "0001")]
    write_shard(tmp_path, "0001", Shard(latents(), {}))
    with pytest.raises(ValueError, match="has no shard for 1 of 2 items, for example 0002; run the stage again"):
        finish(tmp_path, rows, [])
    with pytest.raises(ValueError, match=r"has no manifest.jsonl; run the stage"):
        indexed(tmp_path)
    write_shard(tmp_path, "0002", Shard(latents(), {}))
    finish(tmp_path, rows, [{"id": "0003", "code": "crashed", "reason": "three workers died of it"}])
    assert [path.stem for path in indexed(tmp_path)] == ["0001", "0002"]
    write_shard(tmp_path, "0004", Shard(latents(), {}))
    with pytest.raises(ValueError, match="lists 2 shards, and the folder holds 3; for example, 0004 is in only"):
        indexed(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, size: int) -> None:
    write_shard(tmp_path, "0001", Shard(latents(), {"caption": "x"}))
    path = shard_path(tmp_path, "0001")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"0001.safetensors is not a valid shard .*delete it"):
        read_shard(path)
