"""The report is a self-contained page with videos, tables and figures, and names everything that is missing."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from causvid.data.videos import manifest
from causvid.reporting import content as contents
from causvid.reporting import page, tables
from causvid.reporting.content import Content

Collect = Callable[[Path, Path], Content]


class Reader(HTMLParser):
    """Collect the videos and all addresses that a browser would load."""

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
    """Parse the page that ``content`` describes."""
    reader = Reader()
    reader.feed(page.html(content, folder, page.draw(content, folder)))
    return reader


def test_the_page_is_self_contained(content: Content, tmp_path: Path) -> None:
    """All addresses on the page are data URIs, and the style sheet loads no file."""
    reader = read(content, tmp_path / "figures")
    assert reader.loaded
    assert all(address.startswith("data:") for address in reader.loaded)
    assert "url(" not in reader.text
    assert "@import" not in reader.text


def test_the_videos_are_the_samples(content: Content, samples: Path, captions: dict[str, str], tmp_path: Path) -> None:
    """The page shows the race, two prompts of four models, then reconstructions and rollouts.

    The videos on the page have the bytes of the files. The player starts them, not the browser.
    """
    race, videos = [], []
    for video in read(content, tmp_path / "figures").videos:
        (videos if video.get("class") == "clip" else race).append(video)
        assert {"muted", "playsinline"} <= set(video)
        assert "autoplay" not in video
    assert len(videos) == content.videos_shown == 2 * 4 + 2 + 2 * 3
    shown = [base64.b64decode((video["src"] or "").partition(",")[2]) for video in (*race, *videos[:4])]
    names = ("teacher", "dmd", *tables.MODELS)
    assert shown == [(samples / name / "00000.mp4").read_bytes() for name in names]
    labels = [video["aria-label"] for video in videos[4:8]]
    assert labels == [
        f"{name}: {captions['00001']}" for name in ("teacher", "causal teacher", "student, ODE init", "student, DMD")
    ]


def test_a_small_video_is_enlarged_by_a_whole_factor(content: Content, tmp_path: Path) -> None:
    """Videos of 32 x 32 pixels are shown with 160 x 160 pixels and without interpolation."""
    reader = read(content, tmp_path / "figures")
    assert {video["width"] for video in reader.videos} == {"160"}
    assert "image-rendering: pixelated" in reader.text


def test_without_measured_speed_there_is_no_race(
    collect: Collect, reports: Path, samples: Path, tmp_path: Path
) -> None:
    (reports / "measure_latency" / "metrics.json").unlink()
    content = collect(reports, samples)
    assert content.race is None
    assert "race" not in {video.get("class") for video in read(content, tmp_path / "figures").videos}
    assert content.speeds == ()


@pytest.mark.parametrize(("load", "warned"), [(None, False), (0.1, False), (1.5, True)])
def test_a_busy_machine_is_named(content: Content, load: float | None, warned: bool) -> None:
    results = {**content.results, "measure_latency": {**content.results["measure_latency"], "other_load": load}}
    assert ("other processes used 1.5 cores" in replace(content, results=results).busy) == warned


def test_captions_and_tables_are_shown_as_text(content: Content, captions: dict[str, str], tmp_path: Path) -> None:
    """Markup in a caption is escaped."""
    reader = read(content, tmp_path / "figures")
    assert captions["00001"] in reader.text
    for words in ("16.0 times sooner", "published, not measured here", "Table 3", "lacks clip.pt", "28.6", "too short"):
        assert words in reader.text
    assert "in 4 steps (timesteps 1000, 750, 500, 250)" in reader.text


def test_the_report_is_reproducible(content: Content, tmp_path: Path) -> None:
    """Page, Markdown and figures of the same run have equal bytes when they are written again."""
    made = []
    for name in ("a", "b"):
        drawn = page.draw(content, tmp_path / name)
        images = [(tmp_path / name / figure).read_bytes() for figure in drawn.names]
        made.append((page.html(content, tmp_path / name, drawn), page.markdown(content, "figures", drawn), images))
    assert made[0] == made[1]


def test_an_empty_run_says_not_measured(collect: Collect, tmp_path: Path) -> None:
    """Without metrics and samples, the page is complete and shows no measured number."""
    content = collect(tmp_path / "no reports", tmp_path / "no samples")
    reader = read(content, tmp_path / "figures")
    assert reader.videos == []
    assert content.videos_shown == 0
    assert "The speed of teacher and student was not measured." in reader.text
    waiting = ("Samples: not measured.", "Rollouts: not measured.", "Curves: not measured.", "Figure 4: not run.")
    for words in (*waiting, "Columns on the left: not run; run 'make ablation'."):
        assert words in reader.text


def test_table_4_and_figure_4_are_shown_if_the_ablation_was_run(
    collect: Collect, ablated: Path, samples: Path, tmp_path: Path
) -> None:
    """Page and Markdown show rows, claims and curves of the ablation.

    A second table appears if the students were also trained on the other inputs.
    """
    content = collect(ablated, samples)
    drawn = page.draw(content, tmp_path / "figures")
    text = page.markdown(content, "figures", drawn)
    for words in (
        "## Table 4\n",
        "0.502 ± 0.011",
        "| causal teacher is worse | paper | text |",
        "](figures/figure4-1.svg)",
        "](figures/figure4-legend.svg)",
    ):
        assert words in text
    assert "not run" not in text
    titles = [table.title for section in content.sections() for table in (*section.tables, *section.folded)]
    assert "Table 4, students trained on noised real clips" not in titles
    (ablated / "ablate" / "table4_data.json").write_text((ablated / "ablate" / "table4.json").read_text())
    both = collect(ablated, samples)
    assert "Table 4, students trained on noised real clips" in [
        table.title for section in both.sections() for table in section.folded
    ]
    alone, beside = (list(each.along()[-1].lines) for each in (content, both))
    assert beside == [*alone, f"{alone[0]}, trained on noised real clips"]
    reader = read(content, tmp_path / "again")
    assert "0.502 ± 0.011" in reader.text
    svg = base64.b64encode((tmp_path / "figures" / "figure4-1.svg").read_bytes()).decode()
    assert any(address.endswith(svg) for address in reader.loaded)


def test_the_place_of_a_model_without_samples_is_empty(
    collect: Collect, reports: Path, samples: Path, tmp_path: Path
) -> None:
    """If one model has no samples, the page still shows the videos of the other models."""
    shutil.rmtree(samples / "ode_init")
    content = collect(reports, samples)
    assert [path is None for path in content.samples[0].videos.values()] == [False, False, True, False]
    assert len(read(content, tmp_path / "figures").videos) == 2 + 2 * 3 + 2 * 2 + 2  # the race has two


def test_only_prompts_with_videos_of_every_model_are_shown(collect: Collect, reports: Path, samples: Path) -> None:
    """A missing video of one model does not shift the rows of the other models."""
    rows = manifest.read_manifest(samples / "teacher")
    manifest.write_rows(samples / "teacher" / manifest.NAME, rows[1:])
    assert [show.id for show in collect(reports, samples).samples] == ["00001", "00002"]


def test_markdown_has_figures_tables_and_sources(content: Content, tmp_path: Path) -> None:
    """Markdown refers to figures by relative paths, and to sources by addresses."""
    text = page.markdown(content, "figures", page.draw(content, tmp_path / "figures"))
    for words in (
        "](figures/race.webp)",
        "](figures/samples.png)",
        "](figures/rollouts.png)",
        "](figures/train_dmd-student_loss.svg)",
        "| teacher | **0.550** |",
        "2412.07772",
    ):
        assert words in text
    assert "data:" not in text
    assert text.endswith(">\n")


def test_figures_are_written_without_rollouts(collect: Collect, reports: Path, samples: Path, tmp_path: Path) -> None:
    """A run without causal models has no rollouts, and the report has no sheet of rollouts."""
    for model in contents.CAUSAL:
        shutil.rmtree(samples / model / "rollouts")
    drawn = page.draw(collect(reports, samples), tmp_path / "figures")
    assert drawn.sheets == ["samples.png"]
    assert all((tmp_path / "figures" / name).stat().st_size > 0 for name in drawn.names)


@pytest.mark.parametrize(
    ("model", "note"),
    [
        ("causal", None),
        ("converted", "The causal teacher in the tables is not trained"),
        ("bidirectional", "All models are bidirectional"),
    ],
)
@pytest.mark.parametrize(
    ("causal", "student", "if_causal", "otherwise"),
    [
        ("data/checkpoints/teacher", "data/checkpoints/causal_teacher", "not the paper's", "as in the paper"),
        ("weights/any", "data/checkpoints/causal_teacher", "not the paper's", "The student starts from weights/any."),
        ("weights/any", "data/checkpoints/teacher", "as in the paper", "as in the paper"),
        ("weights/any", "weights/student", "starts from weights/student.", "starts from weights/student."),
    ],
)
def test_the_report_says_where_the_student_starts(
    content: Content, causal: str, student: str, if_causal: str, otherwise: str, model: str, note: str | None
) -> None:
    results = {
        "train_causal_teacher": {"steps": 0, "start": causal, "model": model},
        "train_ode_init": {"start": student},
    }
    said = replace(content, results=results).start
    assert (if_causal if model == "causal" else otherwise) in said
    assert (note or "starts") in said
    assert ("in the tables" in said) == (note is not None)
    assert replace(content, results={}).start == ""


def test_the_facts_come_from_the_params(content: Content) -> None:
    assert "whole clip in 20 steps" in content.facts
    assert "5 frames, 32x32 pixels at 8 frames per second" in content.facts
