"""Packing keeps the order and captions of shards, and rejects shards with different shapes or timesteps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from causvid.data.pack import pack
from causvid.data.shards import Shard, finish, shard_path, write_shard
from causvid.data.stores.config import PackConfig, PackItem
from causvid.data.stores.latent_store import LatentStore
from causvid.params import build


def fill(
    folder: Path, names: list[str], *, notes: dict[str, str] | None = None, shape: tuple[int, ...] = (4, 3, 2, 2)
) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        generator = torch.Generator().manual_seed(int(name))
        write_shard(
            folder, name, Shard(torch.randn(shape, generator=generator), {"caption": f"clip {name}", **(notes or {})})
        )
    rows = [{"id": path.stem, "caption": f"clip {path.stem}"} for path in folder.glob("*.safetensors")]
    finish(folder, rows, [])


def test_records_are_sorted_by_name_and_not_by_time(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["0010", "0002", "0001"])
    fill(tmp_path / "b", ["0001", "0002", "0010"])
    metadata = pack(tmp_path / "a", tmp_path / "lmdb", per_transaction=2)
    pack(tmp_path / "b", tmp_path / "again", per_transaction=2)
    store = LatentStore(tmp_path / "lmdb")
    assert [store[k].prompt for k in range(len(store))] == ["clip 0001", "clip 0002", "clip 0010"]
    assert metadata == {"count": 3, "shape": [3, 4, 2, 2], "dtype": "float16", "timesteps": None}
    assert (tmp_path / "lmdb" / "data.mdb").read_bytes() == (tmp_path / "again" / "data.mdb").read_bytes()


def test_shards_with_equal_captions_are_separate_records(tmp_path: Path) -> None:
    """Three equal captions give three records.

    The original CausVid packer keeps only the first record with a prompt, and may lose the shape if the last prompt is
    a repetition.
    """
    fill(tmp_path / "shards", ["0001", "0002", "0003"], notes={"caption": "a red ball"})
    assert pack(tmp_path / "shards", tmp_path / "lmdb", per_transaction=2)["count"] == 3


def test_pairs_keep_their_timesteps(tmp_path: Path) -> None:
    times = [1000.0, 756.7567567567568, 0.0]
    fill(tmp_path / "shards", ["0001", "0002"], notes={"timesteps": json.dumps(times)}, shape=(3, 4, 3, 2, 2))
    assert pack(tmp_path / "shards", tmp_path / "lmdb", per_transaction=2)["timesteps"] == times
    LatentStore(tmp_path / "lmdb").require_timesteps([1000, 757, 0], 0.5)


def test_shards_with_different_shapes_or_timesteps_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    fill(folder, ["0001"], notes={"timesteps": "[1000.0, 0.0]"})
    fill(folder, ["0002"], notes={"timesteps": "[1000.0, 500.0]"})
    with pytest.raises(ValueError, match=r"0002.safetensors has timesteps \[1000.0, 500.0\], .*0001.safetensors has"):
        pack(folder, tmp_path / "times", per_transaction=2)
    fill(folder, ["0002"], notes={"timesteps": "[1000.0, 0.0]"}, shape=(4, 2, 2, 2))
    with pytest.raises(ValueError, match=r"record 1 has shape \(2, 4, 2, 2\)"):
        pack(folder, tmp_path / "shapes", per_transaction=2)


def test_an_empty_folder_and_a_damaged_shard_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no manifest.jsonl; run the stage"):
        pack(tmp_path, tmp_path / "lmdb", per_transaction=2)
    fill(tmp_path / "shards", ["0001", "0002"])
    shard_path(tmp_path / "shards", "0002").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0002.safetensors is not a valid shard"):
        pack(tmp_path / "shards", tmp_path / "lmdb", per_transaction=2)


def test_timesteps_may_be_set_for_an_original_causvid_lmdb_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pack_lmdb: timesteps is \[1000.0, 0.0\] with source ours; set it to null"):
        build(PackItem, {"source": "ours", "folder": "data/ode_pairs", "timesteps": [1000, 0]}, name="pack_lmdb")


def test_an_unknown_source_is_named() -> None:
    item = {"source": "ours", "folder": "data/latents", "timesteps": None}
    section = {"records_per_transaction": 2, "latents": {**item, "source": "theirs"}, "ode_pairs": item}
    with pytest.raises(ValueError, match=r"pack_lmdb.latents.source: .*'ours' or 'released' \(found 'theirs'\)"):
        build(PackConfig, section, name="pack_lmdb")


def test_timesteps_of_clips_and_missing_timesteps_are_refused() -> None:
    item = {"source": "ours", "folder": "data/latents", "timesteps": None}
    released = {**item, "source": "released"}
    for wrong, said in (
        ({"latents": {**released, "timesteps": [1000, 0]}, "ode_pairs": item}, r"latents.timesteps is \[1000.0, 0.0\]"),
        ({"latents": item, "ode_pairs": released}, "ode_pairs.timesteps is null, and a released LMDB does not record"),
    ):
        with pytest.raises(ValueError, match=said):
            build(PackConfig, {"records_per_transaction": 2, **wrong}, name="pack_lmdb")
