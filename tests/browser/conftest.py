"""Servers on loopback over a finished flow run, and a headless Chromium that looks at them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.unit.flows import tiny_pipeline

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1500,1100"
)
# A stage like ours as far as MLflow can see: a child run with a curve and a sample.
SAMPLE = """\
from pathlib import Path
import numpy as np
from causvid.data.video_writer import write_video
from causvid.runtime.tracking import Made, child_run

frames = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, None, :, None], (9, 64, 1, 3))
write_video(Path("sample.mp4"), frames, fps=8, crf=10)
made = Made(key="0123", inputs={}, upstream={})
with child_run("report", "tiny", Path.cwd(), {"steps": 3}, made, Path.cwd()) as tracker:
    for step in range(5):
        tracker.log_metrics({"loss": 1 / (step + 1)}, step)
    tracker.log_artifact(Path("sample.mp4"), "samples")
"""


@dataclass(frozen=True)
class Servers:
    """Where the pages of a finished flow run are."""

    prefect: str
    mlflow: str


class Page:
    """A Chromium tab; what it shows is waited for, and kept as a picture."""

    def __init__(self, driver: Chrome, pictures: Path) -> None:
        self.driver = driver
        self.pictures = pictures

    def open(self, url: str) -> None:
        """Go to ``url``, as somebody who comes from elsewhere: a change after '#' alone loads nothing."""
        self.driver.get("about:blank")
        self.driver.get(url)

    def shows(self, *texts: str) -> str:
        """Wait until all ``texts`` are on the page; return everything that is."""
        try:
            WebDriverWait(self.driver, 90).until(lambda _: all(text in self.text() for text in texts))
        except Exception as error:
            self.picture("missing")
            raise AssertionError(f"the page never showed all of {texts}; it shows\n{self.text()}") from error
        return self.text()

    def text(self) -> str:
        """The visible text."""
        return str(self.driver.execute_script("return document.body ? document.body.innerText : ''"))

    def click(self, label: str) -> None:
        """Press the button, tab or link that says ``label``."""
        path = f"//*[self::button or self::a or @role='tab'][normalize-space()='{label}']"
        WebDriverWait(self.driver, 60).until(lambda it: it.find_elements(By.XPATH, path))[0].click()

    def wait(self, script: str) -> object:
        """Wait until the JavaScript expression is true; return its value."""
        return WebDriverWait(self.driver, 60).until(lambda it: it.execute_script(f"return {script}"))

    def picture(self, name: str) -> Path:
        """Take a screenshot."""
        path = self.pictures / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "chromium must be on PATH; 'make test-browser' installs it"
    assert chromedriver, "chromedriver must be on PATH; 'make test-browser' installs it"
    options = ChromeOptions()
    options.binary_location = chromium  # or Selenium looks for one to download
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = Chrome(options=options, service=ChromeService(chromedriver))
    pictures = tmp_path_factory.mktemp("pictures")
    yield Page(driver, pictures)
    driver.quit()
    print(f"\npictures are in {pictures}")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both servers, after the flow ran everything and then found nothing to do."""
    root = tiny_pipeline.make(tmp_path_factory.mktemp("tiny") / "project")
    (root / "sample.py").write_text(SAMPLE)
    pipeline = (root / "dvc.yaml").read_text().replace("cmd: cat a.txt", "cmd: python sample.py && cat a.txt")
    (root / "dvc.yaml").write_text(pipeline)
    (root / "reports").mkdir()
    (root / "reports" / "sheet.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>')
    (root / "reports" / "report.md").write_text("# What came out\n\n![sheet](sheet.svg)\n")
    ports = {name: _free_port() for name in ("prefect", "mlflow")}
    url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))} | {
        "PYTHONPATH": str(PROJECT),
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_API_URL": f"{url['prefect']}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    prefect = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(ports["prefect"])]
    mlflow = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", "1"]
    with _running(prefect, f"{url['prefect']}/api/health", env, root):
        for _ in range(2):
            subprocess.run([sys.executable, "-m", "flows.distill"], cwd=root, env=env, check=True)
        store = ["--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
        with _running([*mlflow, *store], f"{url['mlflow']}/health", env, root):
            yield Servers(prefect=url["prefect"], mlflow=url["mlflow"])


@contextmanager
def _running(command: list[str], health: str, env: dict[str, str], root: Path) -> Iterator[None]:
    log = root / f"{Path(command[0]).name}.log"
    with log.open("w") as output, subprocess.Popen(command, cwd=root, env=env, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 180
            while not _is_up(health):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield
        finally:
            process.terminate()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (URLError, ConnectionError, TimeoutError):
        return False


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
