"""Start servers on loopback with finished flow runs, and a headless Chromium that opens their pages."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.unit.flows import tiny_pipeline

PROJECT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1500,1100"
)
# This stage has a child run in MLflow with a curve and a sample.
SAMPLE = """\
from pathlib import Path
import numpy as np
from causvid.data.videos.video_writer import write_video
from causvid.harness.tracking import Made, child_run

frames = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, None, :, None], (9, 64, 1, 3))
write_video(Path("sample.mp4"), frames, fps=8, crf=10)
made = Made(key="0123", inputs={}, upstream={})
with child_run("report", "tiny", Path.cwd(), {"steps": 3}, made, Path.cwd()) as tracker:
    for step in range(5):
        tracker.log_metrics({"loss": 1 / (step + 1)}, step)
    tracker.log_artifact(Path("sample.mp4"), "samples")
    tracker.log_headline({"velocity": 0.875, "fps": 85.5}, "It moves.", [Path("sample.mp4")])
"""


@dataclass(frozen=True)
class Servers:
    """The addresses of the servers, and the project whose flow runs the servers show."""

    root: Path
    prefect: str
    mlflow: str
    password: str
    runs: str  # address of MLflow's table of runs, which 'make ui' prints


class Page:
    """A Chromium tab. The methods wait for the content of pages and take screenshots."""

    def __init__(self, driver: Chrome, screenshots: Path) -> None:
        self.driver = driver
        self.screenshots = screenshots

    def open(self, url: str) -> None:
        """Load ``url`` completely, even if it differs from the current URL only after '#'."""
        self.driver.get("about:blank")
        self.driver.get(url)

    def shows(self, *texts: str) -> str:
        """Wait until the page shows all ``texts``, and return its visible text."""
        try:
            WebDriverWait(self.driver, 90).until(lambda _: all(text in self.text() for text in texts))
        except Exception as error:
            self.screenshot("missing")
            raise AssertionError(f"the page never showed all of {texts}; it shows\n{self.text()}") from error
        return self.text()

    def text(self) -> str:
        """Return the visible text of the page."""
        return str(self.driver.execute_script("return document.body ? document.body.innerText : ''"))

    def click(self, label: str) -> None:
        """Click the button, tab or link with the text ``label``."""
        path = f"//*[self::button or self::a or @role='tab'][normalize-space()='{label}']"
        WebDriverWait(self.driver, 60).until(lambda driver: driver.find_elements(By.XPATH, path))[0].click()

    def wait(self, script: str) -> object:
        """Wait until the JavaScript expression is true, and return its value."""
        return WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(f"return {script}"))

    def screenshot(self, name: str) -> Path:
        """Take a screenshot of the page, and save the screenshot as ``name``."""
        path = self.screenshots / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "chromium must be on PATH; 'make test-browser' installs it"
    assert chromedriver, "chromedriver must be on PATH; 'make test-browser' installs it"
    options = ChromeOptions()
    options.binary_location = chromium  # without this option, Selenium would try to download a browser
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = Chrome(options=options, service=ChromeService(chromedriver))
    screenshots = tmp_path_factory.mktemp("screenshots")
    yield Page(driver, screenshots)
    driver.quit()
    print(f"\nscreenshots are in {screenshots}")


@pytest.fixture(scope="session")
def servers(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Run ``make ui`` with two flow runs, and enter the password. The second flow run has only unchanged stages."""
    root = tiny_pipeline.make(tmp_path_factory.mktemp("tiny") / "project")
    (root / "sample.py").write_text(SAMPLE)
    pipeline = (root / "dvc.yaml").read_text().replace("cmd: cat a.txt", "cmd: python sample.py && cat a.txt")
    (root / "dvc.yaml").write_text(pipeline)
    (root / "reports" / "figures").mkdir(parents=True)
    Image.new("RGB", (48, 32), "teal").save(root / "reports" / "figures" / "samples.png")
    (root / "reports" / "sheet.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>')
    (root / "reports" / "report.md").write_text("# What came out\n\n![sheet](sheet.svg)\n")
    # Use the deployments and the settings of the servers of this project.
    for name in ("flows", "prefect.yaml", "pyproject.toml"):
        (root / name).symlink_to(PROJECT / name)
    prefect, mlflow = _free_port(), _free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))} | {
        "PYTHONPATH": str(PROJECT),
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "flows.servers", "--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    with _running(command, env, root):
        password = (root / ".prefect" / "auth").read_text()
        (runs,) = re.findall(r"^MLflow, runs +(\S+)$", (root / "servers.log").read_text(), re.MULTILINE)
        served = Servers(
            root=root,
            prefect=f"http://127.0.0.1:{prefect}",
            mlflow=f"http://127.0.0.1:{mlflow}",
            password=password,
            runs=runs,
        )
        env |= {"PREFECT_API_URL": f"{served.prefect}/api", "PREFECT_API_AUTH_STRING": password}
        for _ in range(2):
            subprocess.run([sys.executable, "-m", "flows.distill"], cwd=root, env=env, check=True)
        page.open(f"{served.prefect}/v2/runs")
        page.wait("document.querySelector('input[type=password]') !== null")
        page.driver.find_element(By.CSS_SELECTOR, "input[type=password]").send_keys(password, Keys.ENTER)
        page.shows("2 Flow runs")
        yield served


@contextmanager
def _running(command: list[str], env: dict[str, str], root: Path) -> Iterator[None]:
    """Run ``make ui``. The block starts when the addresses have been printed."""
    log = root / "servers.log"
    with log.open("w") as output, subprocess.Popen(command, cwd=root, env=env, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 240
            while "MLflow, runs" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield
        finally:
            process.terminate()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
