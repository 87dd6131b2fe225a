"""After kills of Ray workers, nodes or drivers, lost items are repeated, and results have the bytes of one process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from causvid.compute.parallel import map_groups
from causvid.data.resampling import clips as resampling
from causvid.data.resampling.clips import resample_folder
from causvid.data.resampling.config import ResampleConfig
from causvid.data.videos import manifest
from causvid.runtime.shapes import VideoShape
from tests.conftest import ONE_WORKER
from tests.pipeline.ray_jobs import Trouble, run_latents, run_pairs

pytestmark = pytest.mark.pipeline
slow = pytest.mark.slow

HERE = ONE_WORKER
TWO = replace(ONE_WORKER, workers=2)


@pytest.fixture(autouse=True)
def _our_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow workers to import the modules of this tree, because workers unpickle objects of these modules."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@slow
def test_an_item_that_kills_its_worker_affects_no_other_item(tmp_path: Path) -> None:
    groups = [[1, 2], [3, 7], [4, 13, 5], [6, -1], [8, 9], [10, 11]]
    done = list(map_groups(Trouble(tmp_path), groups, TWO))
    assert sorted(square for handled in done for square in handled.results) == [
        n * n for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    ]
    bad = sorted((item, error.code, error.reason) for handled in done for item, error in handled.bad)
    assert bad == [(-1, "unreadable", "it is -1"), (13, "crashed", "the item crashed 3 processes")]
    assert len((tmp_path / "7").read_text().splitlines()) >= 2
    assert len((tmp_path / "13").read_text().splitlines()) >= 3


@slow
def test_an_item_that_kills_its_reader_beside_gpus_affects_no_other_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray reads the number of GPUs from its configuration, so this test needs no GPU."""
    groups = [[1, 2], [-13, 3], [4, -1], [5, 6]]
    with_gpus = replace(ONE_WORKER, workers=2, gpus_per_worker=1)
    with cluster_of(4, gpus=2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        done = list(map_groups(Trouble(tmp_path), groups, with_gpus))
    assert sorted(square for handled in done for square in handled.results) == [1, 4, 9, 16, 25, 36]
    bad = sorted((item, error.code) for handled in done for item, error in handled.bad)
    assert bad == [(-13, "crashed"), (-1, "unreadable")]


@slow
def test_an_exception_in_a_worker_is_raised_in_the_driver(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="99 is an error in our code"):
        list(map_groups(Trouble(tmp_path), [[1], [99], [2]], TWO))


@slow
def test_resampling_with_two_workers_gives_the_bytes_of_one_process(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "VIDEOS_PER_GROUP", 3)  # Ray is not used for a single group
    rows = [{**row, "source": row["id"]} for row in manifest.read_manifest(world / "clips")]
    raw = tmp_path / "raw"
    (raw / "videos").mkdir(parents=True)
    for row in rows:
        (raw / row["path"]).write_bytes((world / "clips" / row["path"]).read_bytes())
    (raw / rows[3]["path"]).write_bytes(b"no video")
    manifest.write_rows(raw / manifest.NAME, rows)
    video = VideoShape(height=16, width=16, frames=9, fps=8)
    config = ResampleConfig(aspect="crop", crf=8, hdr="tone_map", interlaced="deinterlace")
    for name, compute in (("one", HERE), ("two", TWO)):
        counts = resample_folder(raw, tmp_path / name, video=video, config=config, compute=compute)
        assert counts == {"kept": 7, "rejected": 1, "rejected_by_code": {"unreadable": 1}}
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_session_does_not_join_another_cluster_and_requires_its_token() -> None:
    """Another cluster runs on the same machine.

    All sockets of the session listen on loopback and require the token of the session.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    program = [sys.executable, "-m", "tests.pipeline.ray_jobs", "doors"]
    with cluster_of(1):
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert {address.removeprefix("::ffff:") for address in answers["listening"]} == {"127.0.0.1"}
    assert answers[""] == "in: 1\n"
    for token in ("none", "wrong"):
        assert "token is missing or incorrect" in answers[token] or "Ensure that the token" in answers[token]
        assert "in:" not in answers[token]


@pytest.fixture(scope="module")
def clips(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the eight clips of the toy world, each six times, so that there is time for kills."""
    folder = tmp_path_factory.mktemp("many") / "clips"
    (folder / "videos").mkdir(parents=True)
    rows = []
    for number, row in enumerate(6 * manifest.read_manifest(world / "clips")):
        path = f"videos/{number:06d}.mp4"
        (folder / path).write_bytes((world / "clips" / row["path"]).read_bytes())
        rows.append({**row, "id": f"{number:06d}", "path": path, "source": path})
    manifest.write_rows(folder / manifest.NAME, rows)
    return folder


@pytest.fixture(scope="module")
def latents(world: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the shards and the index of clip latents, written by one process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_latents(world, clips, out, workers=1)
    return contents(out)


@pytest.fixture(scope="module")
def pairs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the shards and the index of ODE pairs, written by one process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_pairs(world, world / "clips", out, workers=1)
    return contents(out)


@contextmanager
def cluster_of(*cpus: int, gpus: int = 0) -> Iterator[Cluster]:
    """Start a Ray cluster on this machine with one node per number in ``cpus``. The first node has ``gpus`` GPUs."""
    head = {"num_cpus": cpus[0], "num_gpus": gpus, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@slow
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "one killed"])
def test_two_nodes_give_the_bytes_of_one_process(
    world: Path, clips: Path, latents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Each node has one CPU and thus one worker. If one node is killed, the other node completes the work."""
    out = tmp_path / "out"
    with cluster_of(1, 1) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        (second,) = cluster.worker_nodes

        def kill() -> None:
            while len(list(out.glob("*.safetensors"))) < 12:
                time.sleep(0.001)
            cluster.remove_node(second, allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        if killed:
            killer.start()
        run_latents(world, clips, out, workers=2)
        if killed:
            killer.join(timeout=60)
            assert not killer.is_alive()
    assert contents(out) == latents


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=[slow, pytest.mark.timeout(7200)])])
def test_killed_drivers_and_workers_give_the_bytes_of_one_process(
    world: Path, clips: Path, latents: dict[str, bytes], pairs: dict[str, bytes], tmp_path: Path, kills: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Rounds alternate between latents and ODE pairs.

    Half of the kills hit the driver, and the other kills hit a worker of the driver.
    """
    draw, done, rounds, hit = random.Random(0), 0, 0, {"driver": 0, "worker": 0}
    with cluster_of(3) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        while done < kills or not rounds:
            what, source, expected = (("latents", clips, latents), ("pairs", world / "clips", pairs))[rounds % 2]
            out = tmp_path / f"{rounds}"
            while True:
                driver = subprocess.Popen(
                    [sys.executable, "-m", "tests.pipeline.ray_jobs", what, str(world), str(source), str(out)]
                )
                while driver.poll() is None and done < kills:
                    before = len(list(out.glob("*.safetensors")))
                    while driver.poll() is None and len(list(out.glob("*.safetensors"))) == before:
                        time.sleep(0.001)
                    time.sleep(draw.uniform(0, 0.2))
                    if driver.poll() is not None:
                        break
                    if draw.random() < 0.5:
                        driver.kill()
                        hit["driver"] += 1
                        done += 1
                        break
                    workers = [p for p in psutil.process_iter(["cmdline"]) if is_worker(p, cluster)]
                    if workers:
                        draw.choice(sorted(workers, key=lambda process: process.pid)).kill()
                        hit["worker"] += 1
                        done += 1
                if driver.wait() == 0:
                    break
                assert driver.returncode == -signal.SIGKILL
            assert contents(out) == expected
            rounds += 1
    assert min(hit.values()) >= kills // 5


def is_worker(process: psutil.Process, cluster: Cluster) -> bool:
    with suppress(psutil.NoSuchProcess):
        raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
        return any("_Actor" in word for word in process.info["cmdline"] or ()) and process.ppid() in raylets
    return False
