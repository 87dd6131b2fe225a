"""The page stands alone, shows what belongs together, and says what is missing."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from causvid.data.videos import manifest
from causvid.reporting import page
from causvid.reporting.page import Content

Collect = Callable[[Path, Path], Content]


class Reader(HTMLParser):
    """Collects the videos and every address the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.videos: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "video":
            self.videos.append(found)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "poster", "data")]
        assert tag not in ("link", "iframe", "object", "embed")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(content: Content, folder: Path) -> Reader:
    """The page of ``content``, parsed."""
    page.draw(content, folder)
    reader = Reader()
    reader.feed(page.html(content, folder))
    return reader


def test_the_page_needs_nothing_else(content: Content, tmp_path: Path) -> None:
    """Everything it loads is inside it, and the style sheet fetches nothing."""
    reader = read(content, tmp_path / "figures")
    assert reader.loaded
    assert all(address.startswith("data:") for address in reader.loaded)
    assert "url(" not in reader.text
    assert "@import" not in reader.text


def test_videos_play_by_themselves_and_are_the_samples(
    content: Content, samples: Path, captions: dict[str, str], tmp_path: Path
) -> None:
    """Two prompts by three models, then rollouts and reconstructions; the bytes are those of the files."""
    reader = read(content, tmp_path / "figures")
    assert len(reader.videos) == content.videos_shown == 2 * 3 + 2 * 2 + 2
    assert all({"autoplay", "muted", "loop", "playsinline"} <= set(video) for video in reader.videos)
    shown = [base64.b64decode((video["src"] or "").partition(",")[2]) for video in reader.videos[:3]]
    assert shown == [(samples / name / "00000.mp4").read_bytes() for name in ("teacher", "ode_init", "dmd")]
    labels = [video["aria-label"] for video in reader.videos[3:6]]
    assert labels == [f"{name}: {captions['00001']}" for name in ("teacher", "student, ODE init", "student, DMD")]


def test_a_small_video_is_enlarged_by_a_whole_factor(content: Content, tmp_path: Path) -> None:
    """32 pixels become 160, pixelated."""
    reader = read(content, tmp_path / "figures")
    assert {video["width"] for video in reader.videos} == {"160"}
    assert "image-rendering: pixelated" in page.html(content, tmp_path / "figures")


def test_captions_and_tables_are_text(content: Content, captions: dict[str, str], tmp_path: Path) -> None:
    """A caption with markup is shown as it was written."""
    reader = read(content, tmp_path / "figures")
    assert captions["00001"] in reader.text
    for words in ("16.0 times sooner", "published, not measured here", "Table 3", "wants clip.pt", "28.6", "too short"):
        assert words in reader.text
    assert "in 4 steps (timesteps 1000, 750, 500, 250)" in reader.text


def test_where_the_student_is_behind_is_said_in_words(content: Content, collect: Collect, tmp_path: Path) -> None:
    said = (
        "According to the analytic judge, the student scores at most 0.03 below its teacher in background, shape, "
        "motion, and more than 0.03 below its teacher in colour (0.600, teacher 0.800), velocity (0.350, teacher 0.550). "
        "The Fréchet distance of the student is 1.00 times that of its teacher. The velocity scores of the blocks of a "
        "clip, from first to last, are 0.10, 0.88."
    )
    assert content.standing == said
    assert said in read(content, tmp_path / "figures").text
    assert said in page.markdown(content, "figures", [])
    assert collect(tmp_path / "no reports", tmp_path / "no samples").standing == ""


def test_the_same_run_gives_the_same_files(content: Content, tmp_path: Path) -> None:
    """Page, Markdown and figures, byte for byte."""
    made = []
    for name in ("a", "b"):
        names = page.draw(content, tmp_path / name)
        pictures = [(tmp_path / name / figure).read_bytes() for figure in names]
        made.append((page.html(content, tmp_path / name), page.markdown(content, "figures", names), pictures))
    assert made[0] == made[1]


def test_an_empty_run_says_not_measured(collect: Collect, tmp_path: Path) -> None:
    """No metrics, no samples: the page is whole and claims nothing of ours."""
    content = collect(tmp_path / "no reports", tmp_path / "no samples")
    reader = read(content, tmp_path / "figures")
    assert reader.videos == []
    assert content.videos_shown == 0
    assert "The speed of teacher and student was not measured." in reader.text
    waiting = ("Samples: not measured.", "Rollouts: not measured.", "Curves: not measured.", "Figure 4: not run.")
    for words in (*waiting, "Columns on the left: not run; run 'make ablation'."):
        assert words in reader.text


def test_table_4_and_its_figure_are_shown_when_they_were_run(
    collect: Collect, ablated: Path, samples: Path, tmp_path: Path
) -> None:
    """Rows, claims and curves on the page and in the Markdown; a second table for the other inputs when it is there."""
    content = collect(ablated, samples)
    names = page.draw(content, tmp_path / "figures")
    assert "figure4.svg" in names
    text = page.markdown(content, "figures", names)
    for words in ("## Table 4\n", "0.502 ± 0.011", "| causal teacher is worse | text |", "](figures/figure4.svg)"):
        assert words in text
    assert "not run" not in text
    titles = [table.title for table in content.tables()]
    assert "Table 4, students trained on noised real clips" not in titles
    (ablated / "ablate" / "table4_data.json").write_text((ablated / "ablate" / "table4.json").read_text())
    both = collect(ablated, samples)
    assert "Table 4, students trained on noised real clips" in [table.title for table in both.tables()]
    alone, beside = (list(each.along()["velocity by window"]) for each in (content, both))
    assert beside == [*alone, f"{alone[0]}, trained on noised real clips"]
    reader = read(content, tmp_path / "again")
    assert "0.502 ± 0.011" in reader.text
    svg = base64.b64encode((tmp_path / "figures" / "figure4.svg").read_bytes()).decode()
    assert any(address.endswith(svg) for address in reader.loaded)


def test_a_model_without_samples_leaves_its_place_empty(
    collect: Collect, reports: Path, samples: Path, tmp_path: Path
) -> None:
    """The others are still shown, side by side with the gap."""
    shutil.rmtree(samples / "ode_init")
    content = collect(reports, samples)
    assert [path is None for path in content.samples[0].videos.values()] == [False, True, False]
    assert len(read(content, tmp_path / "figures").videos) == 2 * 2 + 2 + 2


def test_only_prompts_that_every_model_answered_stand_side_by_side(
    collect: Collect, reports: Path, samples: Path
) -> None:
    """A model that stopped early does not shift the others' rows."""
    rows = manifest.read_manifest(samples / "teacher")
    manifest.write_rows(samples / "teacher" / manifest.NAME, rows[1:])
    assert [show.id for show in collect(reports, samples).samples] == ["00001", "00002"]


def test_markdown_links_the_figures_and_cites(content: Content, tmp_path: Path) -> None:
    """Figures by relative path, tables, and the sources' addresses."""
    text = page.markdown(content, "figures", page.draw(content, tmp_path / "figures"))
    for words in (
        "](figures/samples.png)",
        "](figures/rollouts.png)",
        "](figures/curves.svg)",
        "| teacher | 128 |",
        "2412.07772",
    ):
        assert words in text
    assert "data:" not in text
    assert text.endswith(">\n")


@pytest.mark.parametrize("name", ["samples.png", "curves.svg"])
def test_figures_are_written_without_rollouts_too(
    collect: Collect, reports: Path, samples: Path, tmp_path: Path, name: str
) -> None:
    """A teacher-only run has no rollouts and no sheet of them."""
    for student in ("ode_init", "dmd"):
        shutil.rmtree(samples / student / "rollouts")
    names = page.draw(collect(reports, samples), tmp_path / "figures")
    assert name in names
    assert "rollouts.png" not in names
    assert (tmp_path / "figures" / name).stat().st_size > 0


def test_the_setting_is_told_from_the_schedule(content: Content) -> None:
    """Numbers of the sentence come from the params."""
    assert "whole clip in 20 steps" in content.facts
    assert "5 frames, 32x32 pixels at 8 frames per second" in content.facts
