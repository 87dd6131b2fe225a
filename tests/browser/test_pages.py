"""A browser shows the pages of Prefect, of MLflow and of ``make compare``."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from causvid.comparison import compare
from causvid.data.videos import manifest
from causvid.data.videos.video_writer import write_video
from causvid.harness import tracking
from causvid.params import ROOT
from tests.browser.conftest import Page, Servers
from tests.unit.flows import tiny_pipeline
from tests.unit.flows.tiny_pipeline import STAGES

pytestmark = pytest.mark.browser


def test_prefect_shows_a_flow_run_with_its_graph_and_the_outcome_of_each_stage(servers: Servers, page: Page) -> None:
    page.open(f"{servers.prefect}/v2/runs")
    page.shows("2 Flow runs", "tiny · all stages · ", "Completed", "profile: tiny")
    links = page.driver.find_elements(By.XPATH, "//a[contains(@href, '/runs/flow-run/')]")
    urls = list(dict.fromkeys(str(link.get_attribute("href")) for link in links))
    for url, outcome in zip(urls, ("Unchanged", "Ran"), strict=True):
        page.open(url)
        page.shows("Completed", "4 Task runs")
        WebDriverWait(page.driver, 60).until(lambda _: _green(page) > 1000, "the graph shows no completed task")
        page.screenshot(f"prefect-{outcome}")
        page.click("Task Runs")
        shown = page.shows(f"4 {outcome}", *STAGES)
        assert ("Ran" in shown) == (outcome == "Ran")
        page.screenshot(f"prefect-tasks-{outcome}")


def test_prefect_shows_the_artifacts(servers: Servers, page: Page) -> None:
    page.open(f"{servers.prefect}/v2/artifacts/key/stages")
    page.shows("stages", "The stages of this distill")
    page.open(f"{servers.prefect}/v2/artifacts/key/report")
    page.shows("report")
    page.driver.find_elements(By.XPATH, "//a[contains(@href, '/artifacts/artifact/')]")[0].click()
    page.shows("What came out")
    page.screenshot("prefect-report")
    assert page.wait("document.querySelector('img[alt=sheet]')?.naturalWidth") == 40
    page.open(f"{servers.prefect}/v2/artifacts/key/samples")
    page.shows("samples")
    page.driver.find_elements(By.XPATH, "//a[contains(@href, '/artifacts/artifact/')]")[0].click()
    assert page.wait("[...document.images].some((image) => image.naturalWidth == 48)")
    page.screenshot("prefect-samples")


def test_a_deployment_that_is_started_with_its_form_completes(servers: Servers, page: Page) -> None:
    href = start_from_form(servers, page)
    page.open(href)
    assert "Failed" not in page.shows("1 Flow run", "Completed")
    page.screenshot("prefect-deployment")


def test_cancel_ends_the_processes_of_the_stage(servers: Servers, page: Page) -> None:
    tiny_pipeline.change(servers.root, "train", cmd="touch started; exec sleep 600")
    try:
        start_from_form(servers, page)
        WebDriverWait(page.driver, 60).until(lambda _: (servers.root / "started").exists())
        (sleep,) = [
            process
            for process in psutil.process_iter()
            if _runs_in(process, servers.root) and "600" in process.cmdline()
        ]
        page.open(f"{servers.prefect}/v2/runs?state=running")
        page.shows("Running")
        href = page.driver.find_element(By.XPATH, "//a[contains(@href, '/runs/flow-run/')]").get_attribute("href")
        page.open(str(href))
        page.shows("Running", "whole-pipeline")
        page.driver.find_elements(By.CSS_SELECTOR, "button[aria-haspopup=menu]")[-1].click()
        page.driver.find_element(By.XPATH, "//*[@role='menuitem'][normalize-space()='Cancel']").click()
        page.screenshot("prefect-cancel")
        page.click("Cancel Flow Run")
        clicked = time.monotonic()
        WebDriverWait(page.driver, 60, poll_frequency=0.1).until(lambda _: not sleep.is_running())
        print(f"\nthe stage's process ended {time.monotonic() - clicked:.1f} s after Cancel")
        assert "Cancelled" in page.shows("whole-pipeline", "Cancelled")
        assert not [
            process
            for process in psutil.process_iter()
            if _runs_in(process, servers.root) and "600" in process.cmdline()
        ]
        page.screenshot("prefect-cancelled")
    finally:
        tiny_pipeline.change(servers.root, "train", cmd="true")


def start_from_form(servers: Servers, page: Page) -> str:
    """Start the deployment of the complete pipeline with its form, and return the address of the deployment's page."""
    page.open(f"{servers.prefect}/v2/deployments")
    page.shows("whole-pipeline", "data", "scores", "table4", "At 03:00 AM", "Paused")
    page.screenshot("prefect-deployments")
    href = page.driver.find_element(By.XPATH, "//a[normalize-space()='whole-pipeline']").get_attribute("href")
    page.open(f"{href}/run")
    page.shows("targets", "Stages to run. Their upstream stages are run as well.")
    page.screenshot("prefect-form")
    page.click("Submit")
    page.wait("location.pathname.includes('/runs/flow-run/') || document.querySelector('a[href*=\"/runs/flow-run/\"]')")
    return str(href)


def test_requests_of_other_hosts_and_origins_are_rejected(servers: Servers) -> None:
    """Requests that write data are refused with another Origin or Host header, with and without the password."""
    user, _, word = servers.password.partition(":")
    prefect = [
        f"{servers.prefect}/api/{path}" for path in ("flows/", "deployments/", "variables/", "flow_runs/", "logs/")
    ]
    mlflow = [
        f"{servers.mlflow}/api/2.0/mlflow/{path}"
        for path in (
            "experiments/create",
            "runs/create",
            "experiments/delete",
            "runs/log-metric",
            "registered-models/create",
        )
    ]
    refused = [
        httpx2.post(url, json={"name": "x"}, headers=header, auth=auth).status_code
        for url in (*prefect, *mlflow)
        for header, auth in (
            ({"Origin": "http://evil.example"}, (user, word)),
            ({"Host": "evil.example", "Origin": "http://evil.example"}, (user, word)),
            ({"Origin": "http://evil.example"}, None),
        )
    ]
    assert len(refused) == 30
    assert set(refused) <= {401, 403}
    assert httpx2.get(f"{servers.prefect}/api/flows/count").status_code == 401
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx2.options(prefect[0], headers=asked, auth=(user, word))
    assert "access-control-allow-origin" not in answer.headers


def test_servers_listen_only_on_loopback(servers: Servers) -> None:
    ours = [process for process in psutil.process_iter() if _runs_in(process, servers.root)]
    listening = {
        connection.laddr.ip
        for process in ours
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(ours) > 3
    assert listening == {"127.0.0.1"}


def test_the_printed_link_opens_the_table_of_parent_runs_with_the_headline(servers: Servers, page: Page) -> None:
    page.open(servers.runs)
    shown = page.shows("tiny", "1 matching run", "Sort: velocity", "0.875", "85.5", "flow distill")
    assert "report" not in shown.split("Run Name")[1].splitlines(), "child runs are rows of the table"
    page.screenshot("mlflow-table")


def test_mlflow_shows_a_child_run_with_its_sample(servers: Servers, page: Page) -> None:
    page.open(f"{servers.mlflow}/#/experiments/1/runs")
    page.shows("tiny", "2 matching runs")
    page.screenshot("mlflow-runs")
    page.driver.find_element(By.XPATH, "//a[normalize-space()='tiny']/ancestor::*[@role='gridcell']//button").click()
    page.shows("report")
    page.screenshot("mlflow-children")
    page.click("report")
    page.shows("dvc_stage", "Parent run", "tiny", "loss")
    page.screenshot("mlflow-child")
    page.click("Artifacts")
    page.shows("samples")
    page.wait("location.hash.endsWith('/artifacts')")
    page.open(f"{page.driver.current_url}/samples/sample.mp4")
    assert page.wait("document.querySelector('video')?.videoWidth") == 64
    page.screenshot("mlflow-sample")


@pytest.fixture
def comparison(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of ``make compare`` shows two runs, which are logged over HTTP as by a worker on another host."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    profile = tmp_path.name  # each test has a separate experiment
    (tmp_path / "params.yaml").write_text(f"profile: {profile}\n")
    ramp = np.arange(33, dtype=np.uint8)[:, None, None, None]
    for scale in (1, 3):
        monkeypatch.setenv(tracking.PARENT_VARIABLE, tracking.start_parent("distill", tmp_path, {}))
        made = tracking.Made(key=f"k{scale}", inputs={}, upstream={})
        params = {"seed": 0, "train_dmd": {"steps": scale}}
        with tracking.child_run("train_dmd", profile, tmp_path, params, made, tmp_path) as tracker:
            for step in range(5):
                tracker.log_metrics({"loss": scale / (step + 1)}, step)
        with tracking.child_run("sample@dmd", profile, tmp_path, {"seed": 0}, made, tmp_path) as tracker:
            write_video(tmp_path / "0.mp4", np.broadcast_to(ramp * scale, (33, 32, 32, 3)).copy(), fps=8, crf=10)
            manifest.write_rows(
                tmp_path / manifest.NAME, [{"id": "0", "path": "0.mp4", "caption": "it grows brighter"}]
            )
            for name in (manifest.NAME, "0.mp4"):
                tracker.log_artifact(tmp_path / name, "samples")
    compare.main([f"causvid/{profile}"], "", tmp_path / "page", ROOT / "data/inputs/published.yaml")
    return tmp_path / "page" / "index.html"


def test_the_comparison_shows_different_params_and_plays_videos_in_sync(comparison: Path, page: Page) -> None:
    page.open(comparison.as_uri())
    shown = page.shows("comparison of 2 runs", "train_dmd.steps", "it grows brighter", "same noise")
    assert "taken over" in shown
    videos = "[...document.querySelectorAll('video')]"
    assert page.wait(f"{videos}.length == 2 && {videos}.every((video) => video.currentTime > 0.3 && !video.paused)")
    assert page.wait(f"Math.abs({videos}[0].currentTime - {videos}[1].currentTime) < 0.13")
    page.screenshot("compare")
    page.click("Pause")
    page.driver.execute_script(
        "const slider = document.querySelector('[data-part=time]'); slider.value = 0.5; slider.dispatchEvent(new Event('input'))"
    )
    assert page.wait(
        f"{videos}.every((video) => video.paused && !video.seeking && Math.abs(video.currentTime - 2.06) < 0.05)"
    )
    assert page.wait("[...document.images].every((image) => image.naturalWidth > 100)")


def test_the_link_of_the_comparison_opens_the_runs_in_mlflow(comparison: Path, page: Page) -> None:
    page.open(comparison.as_uri())
    page.shows("In MLflow")
    link = page.driver.find_element(By.XPATH, "//a[normalize-space()='train_dmd']").get_attribute("href")
    page.open(str(link))
    assert "Comparing 2 Runs" in page.shows("train_dmd.steps", "loss")
    page.screenshot("mlflow-compare")


def _runs_in(process: psutil.Process, root: Path) -> bool:
    """Return whether the working directory of another process is ``root``."""
    try:
        return process.cwd() == str(root) and process.pid != os.getpid()
    except psutil.Error:  # the process has ended
        return False


def _green(page: Page) -> int:
    """Count the pixels of the graph that have the colour of a completed task."""
    page.wait("document.querySelector('canvas')?.width")
    shot = Image.open(io.BytesIO(page.driver.find_element(By.TAG_NAME, "canvas").screenshot_as_png)).convert("RGB")
    return sum(count for count, (r, g, b) in shot.getcolors(1 << 24) or [] if g > 120 and r < 80 and b < 110)
