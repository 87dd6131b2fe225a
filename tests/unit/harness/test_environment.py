"""Variables are set before libraries are imported: no proxy for loopback, short spins of threads, no usage data."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import httpx2
import pytest
import requests

from causvid.harness.environment import SPINS, prepare
from causvid.params import ROOT

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
DEAD = "http://127.0.0.1:9"  # no process listens on this port


@pytest.fixture
def server() -> Iterator[str]:
    """Run a server on loopback, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(http.client.OK)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "no_proxy", "NO_PROXY", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("proxy", [*PROXIES, None])
@pytest.mark.parametrize("bypassed", [{}, {"no_proxy": "intra.example"}, {"NO_PROXY": "a.example, b.example"}])
def test_a_proxy_is_never_used_for_loopback(
    server: str, monkeypatch: pytest.MonkeyPatch, proxy: str | None, bypassed: dict[str, str]
) -> None:
    for name in [proxy] if proxy else PROXIES:
        monkeypatch.setenv(name, DEAD)
    for name, value in bypassed.items():
        monkeypatch.setenv(name, value)
    prepare()
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{server.rpartition(':')[2]}"
        assert httpx.get(url, timeout=5).status_code == http.client.OK
        assert httpx2.get(url, timeout=5).status_code == http.client.OK
        assert requests.get(url, timeout=5).status_code == http.client.OK
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == http.client.OK
    for value in bypassed.values():
        assert all(host.strip() in os.environ["no_proxy"].split(",") for host in value.split(","))


def test_a_proxy_bypass_of_all_hosts_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    prepare()
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == ("*", "*")


def test_a_second_call_of_prepare_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intra.example")
    prepare()
    once = dict(os.environ)
    prepare()
    assert dict(os.environ) == once


def test_threads_spin_shortly_unless_the_user_sets_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    "modules", ["stages.report, torch", "stages.sample, causvid.pipeline", "flows.report", "causvid.generate.videos"]
)
def test_every_command_sets_the_variables_before_torch_and_prefect_are_imported(modules: str) -> None:
    """A stage imports torch in ``run``, after the import of its module."""
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'prefect', 'mlflow', 'httpx'):\n"
        "            assert 'GOMP_SPINCOUNT' in os.environ and '127.0.0.1' in os.environ['no_proxy'], name\n"
        "            assert os.environ['DO_NOT_TRACK'] == 'true'\n"
        "            print(name)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {modules}\n"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("DO_NOT_TRACK", "no_proxy", "NO_PROXY")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"torch", "prefect"} & set(done.stdout.split())
