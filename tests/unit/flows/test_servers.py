"""``make ui`` creates the password, starts and stops the servers, reports errors, and creates the deployments."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from flows import servers
from flows.data import STAGES as DATA
from flows.evaluate import STAGES as EVALUATE

ROOT = Path(__file__).resolve().parents[3]


def test_the_password_is_created_once_and_only_the_owner_can_read_it(tmp_path: Path) -> None:
    first = servers.password(tmp_path)
    user, _, word = first.partition(":")
    assert user == "causvid"
    assert len(word) >= 32
    assert servers.password(tmp_path) == first
    assert stat.S_IMODE((tmp_path / ".prefect" / "auth").stat().st_mode) == 0o600


def test_a_server_that_ends_immediately_is_an_error(tmp_path: Path) -> None:
    server = servers.Server(subprocess.Popen([sys.executable, "-c", "pass"]), tmp_path / "server.log")
    with pytest.raises(SystemExit, match=r"http://127.0.0.1:9/health does not answer .*port in use.*server\.log"):
        servers.wait_for(server, "http://127.0.0.1:9/health", "a:b")


def test_the_panel_has_three_links_the_password_the_logs_and_the_way_to_stop(tmp_path: Path) -> None:
    shown = servers.panel("http://prefect/runs", "http://mlflow/#/experiments/1/runs", tmp_path, "causvid:word")
    assert "http://prefect/runs\n" in shown
    assert "http://mlflow/#/experiments/1/runs\n" in shown
    assert "'make repro' writes it" in shown
    assert all(word in shown for word in ("causvid:word", ".prefect/*.log", "Ctrl-C"))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "index.html").touch()
    assert (tmp_path / "reports/index.html").as_uri() in servers.panel("", "", tmp_path, "")


def test_a_process_writes_to_its_log_and_ends_with_its_child_at_the_end_of_the_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stop kills a server and its child process, which both ignore SIGTERM."""
    code = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
        "print(child.pid, file=open(sys.argv[1], 'w'), flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(servers, "tool", lambda name: sys.executable)
    monkeypatch.setattr(servers, "GRACE", 0.5)
    note = tmp_path / "pid"
    log = tmp_path / "logs" / "server.log"
    with servers.process(["python", "-c", f"print('output')\n{code}", str(note)], os.environ, log) as server:
        deadline = time.monotonic() + 60
        while not (note.is_file() and note.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        grandchild = psutil.Process(int(note.read_text()))
    assert server.child.poll() is not None
    assert log.read_text() == "output\n"
    grandchild.wait(10)


def test_every_flow_has_a_deployment_and_every_deployment_a_flow() -> None:
    listed = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    entrypoints = {deployment["entrypoint"] for deployment in listed}
    flows = {f"flows/{name}.py:{name}" for name in ("distill", "data", "evaluate", "ablate")}
    assert entrypoints == flows
    assert {deployment["work_pool"]["name"] for deployment in listed} == {servers.POOL}
    assert {deployment["concurrency_limit"] for deployment in listed} == {1}
    assert all(not schedule["active"] for deployment in listed for schedule in deployment.get("schedules", []))


def test_the_targets_of_the_smaller_flows_are_stages_of_the_pipeline() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert {target.partition("@")[0] for target in (*DATA, *EVALUATE)} <= set(stages)
