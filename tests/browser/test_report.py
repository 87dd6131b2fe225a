"""The report in a browser: its layout on screens of three widths, its player, and its accessibility."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from causvid.reporting import page as report_page
from causvid.reporting.content import Content
from tests.browser.conftest import Page
from tests.unit.reporting.conftest import ablated, collect, published, reports, samples

__all__ = ["ablated", "collect", "published", "reports", "samples"]  # fixtures

pytestmark = pytest.mark.browser
WIDTHS = (390, 1024, 1400)
CLIPS = "[...document.querySelectorAll('video.clip')]"
ALL = "[...document.querySelectorAll('video')]"


@pytest.fixture
def report(ablated: Path, samples: Path, collect: Callable[[Path, Path], Content], tmp_path: Path) -> Path:
    """Return the HTML page of a finished run with an ablation."""
    content, figures = collect(ablated, samples), tmp_path / "figures"
    out = tmp_path / "index.html"
    out.write_text(report_page.html(content, figures, report_page.draw(content, figures)), encoding="utf-8")
    return out


@pytest.fixture
def emulate(page: Page) -> Iterator[Callable[..., None]]:
    """Return a function that sets the width of the screen and media features; undone after the test."""

    def set_screen(width: int, **features: str) -> None:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    yield set_screen
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def violations(page: Page) -> list[dict[str, Any]]:
    """Return the serious and critical violations that axe-core finds on the page."""
    found = Axe().run(page.driver)["violations"]
    return [
        {"rule": each["id"], "nodes": [node["html"][:200] for node in each["nodes"]][:5]}
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits_the_screen(report: Path, page: Page, emulate: Callable[..., None], width: int) -> None:
    """Nothing is wider than the screen, also in open details, and no video of the first screen is cut off."""
    emulate(width)
    page.open(report.as_uri())
    page.wait(f"{ALL}.every((video) => video.readyState > 1)")
    outside = page.driver.execute_script(
        f"return {ALL}.map((video) => video.getBoundingClientRect()).filter((box) => "
        "box.width && box.top < innerHeight && (box.left < 0 || box.right > innerWidth)).length"
    )
    assert outside == 0
    page.driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.screenshot(f"report-{width}")
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    cut = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth)"
    assert page.driver.execute_script(f"return {cut}.map((each) => each.ariaLabel)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_no_serious_violation_of_accessibility(
    report: Path, page: Page, emulate: Callable[..., None], scheme: str
) -> None:
    emulate(1400, prefers_color_scheme=scheme)
    page.open(report.as_uri())
    page.driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert violations(page) == []


def test_clips_stay_within_one_frame_and_pause_together(report: Path, page: Page, emulate: Callable[..., None]) -> None:
    emulate(1400)
    page.open(report.as_uri())
    page.wait(f"{CLIPS}.every((video) => !video.paused && video.currentTime > 0)")
    time.sleep(30)
    times = f"{CLIPS}.filter((video) => video.duration < 1).map((video) => video.currentTime)"
    for _ in range(10):
        shown = page.driver.execute_script(f"return {times}")
        assert max(shown) - min(shown) <= 1 / 8 + 1e-3
        time.sleep(0.05)
    page.click("Pause")
    page.wait(f"{ALL}.every((video) => video.paused && !video.seeking)")
    before = page.driver.execute_script(f"return {ALL}.map((video) => video.currentTime)")
    time.sleep(1)
    assert page.driver.execute_script(f"return {ALL}.map((video) => video.currentTime)") == before


def test_keys_pause_and_step_by_one_frame(report: Path, page: Page, emulate: Callable[..., None]) -> None:
    emulate(1400)
    page.open(report.as_uri())
    page.wait(f"{CLIPS}.every((video) => !video.paused)")
    body, now = page.driver.find_element(By.TAG_NAME, "body"), "document.querySelector('[data-part=now]').value"
    body.send_keys(Keys.SPACE)
    assert page.wait(f"{ALL}.every((video) => video.paused)")
    page.driver.execute_script(
        "const slider = document.querySelector('[data-part=time]'); slider.value = 0; slider.dispatchEvent(new Event('input'))"
    )
    assert page.wait(f"{now} == 'frame 1 of 5, block 1 of 2'")
    body.send_keys(Keys.ARROW_RIGHT)
    assert page.wait(f"{now} == 'frame 2 of 5, block 2 of 2'")
    assert page.wait(f"{CLIPS}.every((video) => Math.floor(video.currentTime * 8) == 1)")
    body.send_keys(Keys.ARROW_LEFT)
    assert page.wait(f"{now} == 'frame 1 of 5, block 1 of 2'")
    body.send_keys(Keys.SPACE)
    assert page.wait(f"{CLIPS}.some((video) => !video.paused)")


def test_reduced_motion_pauses_all_videos_at_first(report: Path, page: Page, emulate: Callable[..., None]) -> None:
    emulate(1400, prefers_reduced_motion="reduce")
    page.open(report.as_uri())
    page.wait(f"{ALL}.every((video) => video.readyState > 1)")
    time.sleep(1)
    assert page.driver.execute_script(f"return {ALL}.every((video) => video.paused)")
    page.click("Play")
    page.wait(f"{CLIPS}.every((video) => !video.paused)")


def test_the_race_shows_the_blocks_before_the_clip_of_the_teacher(
    report: Path, page: Page, emulate: Callable[..., None]
) -> None:
    emulate(1400, prefers_reduced_motion="reduce")
    page.open(report.as_uri())
    page.wait(f"{ALL}.every((video) => video.readyState > 1)")
    waiting = "[...document.querySelectorAll('.lane')].map((lane) => lane.classList.contains('waiting'))"
    plan = "JSON.parse(document.querySelector('.race').dataset.plan).seconds"
    seconds = f"Math.max({plan}, ...{CLIPS}.map((video) => video.duration))"
    for at, expected in ((0.01, [True, True]), (1.0, [True, False]), (4.3, [False, False])):
        page.driver.execute_script(
            "const slider = document.querySelector('[data-part=time]');"
            f"slider.value = {at} / {seconds}; slider.dispatchEvent(new Event('input'))"
        )
        assert page.wait(f"JSON.stringify({waiting}) == '{str(expected).lower().replace(' ', '')}'")
