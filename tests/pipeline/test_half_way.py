"""From original CausVid LMDBs, the trainings run, and the stages that would build the LMDBs do not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from causvid.data.stores.latent_store import LatentStore
from causvid.record import FILE, read_record
from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline


def released(ours: Path, folder: Path) -> Path:
    """Copy the LMDB ``ours`` to ``folder`` in the original CausVid layout.

    The copy has no checksums, and has rows of an earlier build.
    """
    folder.mkdir(parents=True)
    with (
        lmdb.open(str(ours), readonly=True, lock=False) as source,
        lmdb.open(str(folder), map_size=2**28, lock=False) as target,
        source.begin() as read,
        target.begin(write=True) as write,
    ):
        for key, value in read.cursor():
            if not key.endswith(b"sha256") and key != b"metadata":
                write.put(key, value)
        write.put(b"latents_9999_data", b"stale")
        write.put(b"prompts_9999_data", read.get(b"prompts_0_data"))
    return folder


TRAINED = tuple(f"data/checkpoints/{name}" for name in ("teacher", "causal_teacher", "ode_init", "dmd"))


def data(outs: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in outs.items() if path.startswith("data/") and path not in TRAINED}


def model(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != FILE}


def test_training_starts_from_original_causvid_lmdbs(smoke: Clone, make_clone: Callable[[str], Clone]) -> None:
    """Models have the same bytes if LMDBs with the same rows and prompts replace the videos.

    Only the training record differs, because an original CausVid LMDB does not contain the normalisation of its
    latents.
    """
    clone = make_clone("half_way")
    inputs = clone.root / "data" / "inputs"
    for name in ("latents", "ode_pairs"):
        released(smoke.root / "data" / "lmdb" / name, inputs / f"mixkit_{name}")
    times = LatentStore(smoke.root / "data" / "lmdb" / "ode_pairs").metadata["timesteps"]
    clone.set(
        encode_prompts__captions="data/inputs/mixkit_latents",
        encode_prompts__more_captions="data/inputs/mixkit_ode_pairs",
        pack_lmdb__latents={"source": "released", "folder": "data/inputs/mixkit_latents", "timesteps": None},
        pack_lmdb__ode_pairs={"source": "released", "folder": "data/inputs/mixkit_ode_pairs", "timesteps": times},
    )
    output = clone.run("dvc", "repro", "train_dmd").stdout
    assert [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")].count(
        "train_dmd"
    ) == 1
    assert not (clone.root / "data" / "clips").exists()
    ran_here, everything = clone.hashes(), smoke.hashes()
    assert not ran_here.keys() & {"download", "resample", "train_vae", "extract_latents", "generate_ode_pairs"}
    del ran_here["checksums"]  # the params of the stage checksums have other paths
    for stage, outs in ran_here.items():  # reports contain the key of the stage, which depends on paths
        assert data(outs) == data(everything[stage]), stage
    for path in TRAINED:
        here, there = clone.root / path, smoke.root / path
        assert model(here) == model(there)
        assert read_record(there).latents is not None
        assert read_record(here) == replace(read_record(there), latents=None)
    assert {"train_teacher", "train_causal_teacher", "train_ode_init", "train_dmd"} <= ran_here.keys()


def test_an_original_causvid_lmdb_that_cannot_be_repaired_is_an_error_with_one_sentence(
    make_clone: Callable[[str], Clone],
) -> None:
    clone = make_clone("broken_lmdb")
    (clone.root / "data" / "inputs" / "mixkit").mkdir()
    clone.set(pack_lmdb__latents={"source": "released", "folder": "data/inputs/mixkit", "timesteps": None})
    clone.run("dvc", "repro", "checksums")
    done = clone.run("dvc", "repro", "-s", "pack_lmdb@latents", check=False)
    assert done.returncode != 0
    assert "pack_lmdb: data/inputs/mixkit holds no data.mdb" in done.stderr
    assert "Traceback" not in done.stderr
