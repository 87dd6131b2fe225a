"""What a person sees after ``make flow`` and ``make ui``."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.conftest import Page, Servers
from tests.unit.flows.tiny_pipeline import STAGES

pytestmark = pytest.mark.browser


def test_prefect_shows_the_run_with_its_graph_and_what_became_of_each_stage(servers: Servers, page: Page) -> None:
    page.open(f"{servers.prefect}/v2/runs")
    page.shows("2 Flow runs", "distill", "Completed")
    links = page.driver.find_elements(By.XPATH, "//a[contains(@href, '/runs/flow-run/')]")
    urls = list(dict.fromkeys(str(link.get_attribute("href")) for link in links))
    for url, outcome in zip(urls, ("Unchanged", "Ran"), strict=True):
        page.open(url)
        page.shows("Completed", "4 Task runs")
        WebDriverWait(page.driver, 60).until(lambda _: _green(page) > 1000, "no task is drawn in the graph")
        page.picture(f"prefect-{outcome}")
        page.click("Task Runs")
        shown = page.shows(f"4 {outcome}", *STAGES)
        assert ("Ran" in shown) == (outcome == "Ran")
        page.picture(f"prefect-tasks-{outcome}")


def test_prefect_shows_the_artifacts(servers: Servers, page: Page) -> None:
    page.open(f"{servers.prefect}/v2/artifacts/key/stages")
    page.shows("stages", "The stages of this distill")
    page.open(f"{servers.prefect}/v2/artifacts/key/report")
    page.shows("report")
    page.driver.find_elements(By.XPATH, "//a[contains(@href, '/artifacts/artifact/')]")[0].click()
    page.shows("What came out")
    page.picture("prefect-report")
    assert page.wait("document.querySelector('img[alt=sheet]')?.naturalWidth") == 40


def test_mlflow_shows_the_child_run_with_its_sample(servers: Servers, page: Page) -> None:
    page.open(f"{servers.mlflow}/#/experiments/1/runs")
    page.shows("distill", "2 matching runs")
    page.picture("mlflow-runs")
    page.driver.find_element(By.XPATH, "//a[normalize-space()='distill']/ancestor::*[@role='gridcell']//button").click()
    page.shows("report")
    page.picture("mlflow-children")
    page.click("report")
    page.shows("dvc_stage", "Parent run", "distill", "loss")
    page.picture("mlflow-child")
    page.click("Artifacts")
    page.shows("samples")
    page.wait("location.hash.endsWith('/artifacts')")
    page.open(f"{page.driver.current_url}/samples/sample.mp4")
    assert page.wait("document.querySelector('video')?.videoWidth") == 64
    page.picture("mlflow-sample")


def _green(page: Page) -> int:
    """Pixels in the colour of a completed task, on the canvas of the graph."""
    page.wait("document.querySelector('canvas')?.width")
    shot = Image.open(io.BytesIO(page.driver.find_element(By.TAG_NAME, "canvas").screenshot_as_png)).convert("RGB")
    return sum(count for count, (r, g, b) in shot.getcolors(1 << 24) or [] if g > 120 and r < 80 and b < 110)
