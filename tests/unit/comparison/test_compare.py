"""A comparison of MLflow runs shows results of all stages and origins of numbers on a self-contained page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causvid import params
from causvid.comparison import compare, listing, runs
from causvid.data.videos import manifest
from causvid.data.videos.video_writer import write_video
from causvid.harness import mlflow_store, tracking
from causvid.harness.delivery import TOKEN
from causvid.reporting.published import read_published
from causvid.reporting.tables import NOT_MEASURED, NOT_RUN, Cell, Table

# MLflow sends queries about which SQLAlchemy 2.1 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated")
PUBLISHED = read_published(params.ROOT / "data/inputs/published.yaml")
UI = "http://127.0.0.1:5000"
CAPTION = "a <red> square & a circle"
Make = Callable[..., str]


@pytest.fixture
def api(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return mlflow_store.client(mlflow_uri)


@pytest.fixture
def stage(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that creates a finished run of a stage below the run ``parent`` and returns the run id."""

    def make(name: str, parent: str, key: str, upstream: dict[str, str], **logged: Any) -> str:
        monkeypatch.setenv(tracking.PARENT_VARIABLE, parent)
        unchanged = logged.get("unchanged", {})
        made = tracking.Made(key=key, inputs={"data/x": "0" * 32}, upstream=upstream, unchanged=unchanged)
        values = logged.get("params", {"seed": 0})
        with tracking.child_run(name, "toy", tmp_path, values, made, tmp_path) as tracker:
            for step, loss in enumerate(logged.get("losses", [])):
                tracker.log_metrics({"loss": loss, "memory/bytes": loss}, step)
            tracker.log_results(logged.get("results", {}))
            if "grey" in logged:
                write_video(tmp_path / "0.mp4", np.full((5, 32, 32, 3), logged["grey"], np.uint8), fps=8, crf=10)
                # The second row has no video, because a stage logs only its first few videos to MLflow.
                rows = [{"id": str(k), "path": f"{k}.mp4", "caption": CAPTION} for k in range(2)]
                manifest.write_rows(tmp_path / manifest.NAME, rows)
                for file in (manifest.NAME, "0.mp4"):
                    tracker.log_artifact(tmp_path / file, "samples")
        (run,) = api.search_runs([experiment(api)], f"tags.{TOKEN} = '{tracker.journal.folder.name}'")
        return str(run.info.run_id)

    return make


def experiment(api: Any) -> str:
    return mlflow_store.experiment_id(api, mlflow_store.tracking_uri(Path()), "toy", Path())


def repro(api: Any) -> str:
    """Create a run without stages, and return the run id."""
    return str(api.create_run(experiment(api), run_name="repro").info.run_id)


@pytest.fixture
def two(api: Any, stage: Make, tmp_path: Path) -> tuple[str, str]:
    """Return the ids of two runs.

    The second run uses another guidance scale for training, and reuses the data of the first run.
    """
    first, second = (repro(api) for _ in range(2))
    vbench = {"scores": {"temporal_flickering": 0.5}}
    for parent, key, scale, grey in ((first, "a", 2.0, 50), (second, "b", 3.0, 200)):
        data = {"clips": "k0"}
        if parent == first:
            stage("clips", parent, "k0", {}, results={"kept": 9})
        values = {"seed": 0, "train_dmd": {"guidance_scale": scale}}
        stage("train_dmd", parent, f"train{key}", data, params=values, losses=[3.0, 2.0, scale])
        done = {**data, "train_dmd": f"train{key}"}
        stage("sample@dmd", parent, f"sample{key}", done, grey=grey)
        colour = scale / 4
        results = {
            "intervals": {"colour": [colour - 0.1, colour + 0.1]},
            "judge": {"colour": colour},
            "table4": {"temporal": 80 + scale},
            "vbench": vbench,
        }
        results |= {"drift": {"judge": [{"velocity": 0.75}, {"velocity": scale / 4}]}, "words": "are for the file"}
        stage("evaluate@dmd", parent, f"evaluate{key}", {**done, "sample@dmd": f"sample{key}"}, results=results)
    return first, second


def table(found: compare.Comparison, title: str) -> Table:
    return next(it for it in (*found.tables, *found.further, *found.stages) if it.title == title)


def test_a_run_includes_results_that_the_run_reuses(api: Any, two: tuple[str, str]) -> None:
    first, second = runs.collect(api, two)
    assert list(first.results) == list(second.results) == ["clips", "train_dmd", "sample@dmd", "evaluate@dmd"]
    assert [it.made_here for it in second.results.values()] == [False, True, True, True]
    assert second.results["clips"].run_id == first.results["clips"].run_id
    assert (first.metric("clips", "kept"), second.metric("clips", "kept")) == (9, 9)


def test_runs_are_selected_by_experiment_id_and_filter(api: Any, two: tuple[str, str]) -> None:
    both = [run.run_id for run in runs.collect(api, ["causvid/toy"])]
    assert both == list(two)
    assert [run.run_id for run in runs.collect(api, [two[1], two[1]])] == [two[1]]
    assert [run.run_id for run in runs.collect(api, [" ".join(two)])] == list(two)  # make passes both ids in one string
    trained = runs.collect(api, ["tags.dvc_stage = 'train_dmd'"])
    assert [sorted(run.results) for run in trained] == [["clips", "train_dmd"]] * 2


def test_items_of_a_matrix_stage_share_a_row(api: Any, two: tuple[str, str], stage: Make) -> None:
    stage("evaluate@teacher", two[0], "t", {}, results={"judge": {"colour": 1.0}})
    found = runs.collect(api, ["tags.dvc_stage LIKE 'evaluate@%'"])
    assert [run.metric("evaluate", "judge.colour") for run in found] == [0.5, 0.75, 1.0]


def test_names_without_a_run_are_refused(api: Any, two: tuple[str, str], tmp_path: Path) -> None:
    for wanted, said in (
        ("causvid/other", "nor an experiment .known: Default, causvid/toy., nor a valid MLflow filter"),
        ("0" * 32, "is neither a run id"),
        ("tags.key = 'nobody'", "matches no run"),
    ):
        with pytest.raises(ValueError, match=said):
            runs.collect(api, [wanted])
    empty = repro(api)
    with pytest.raises(ValueError, match=rf"run {empty} \(repro, running\) has no finished stage"):
        runs.collect(api, [empty])
    for _ in range(runs.LIMIT):
        api.create_run("1", tags={"many": "yes"})
    with pytest.raises(ValueError, match="10 runs match .*; name at most 8 runs"):
        runs.collect(api, ["tags.many = 'yes'", *two])


def test_a_stage_that_failed_has_no_result(api: Any, two: tuple[str, str], stage: Make) -> None:
    api.set_terminated(stage("report", two[0], "r", {}, results={"tables": 3}), "FAILED")
    assert "report" not in runs.collect(api, two)[0].results


def test_the_tables_compare_params_keys_and_scores(api: Any, two: tuple[str, str]) -> None:
    found = compare.compare(api, two, PUBLISHED, ui=UI)
    assert table(found, "Params that differ").rows == (("train_dmd.guidance_scale", "2.0", "3.0", "train_dmd"),)
    keys = {row[0]: row[1:] for row in table(found, "Stages by key").rows}
    assert keys["clips"] == ("k0", "k0, taken over", "same")
    assert keys["train_dmd"] == ("traina", "trainb", "differs")
    quality = {row[0]: row[1:] for row in table(found, "Quality: student, DMD").rows}
    assert quality["colour"] == ("0.500", "0.750 (+0.250 ± 0.141 ▲)", "-")
    assert quality["temporal"] == ("82.0", "83.0 (+1.0)", "94.7")
    assert "published, not measured here" in table(found, "Quality: student, DMD").note
    assert ("judge.colour", "0.5", "0.75", "+0.25") in table(found, "evaluate@dmd").rows
    titles = {it.title for it in (*found.tables, *found.further)}
    assert not titles & {"Speed", "Quality: teacher"}  # neither run measured speed or teacher quality


def test_every_number_has_its_origin(api: Any, two: tuple[str, str]) -> None:
    found = compare.compare(api, two, PUBLISHED, ui=UI)
    run = found.compared[1].results["evaluate@dmd"]
    for title in ("Quality: student, DMD", "evaluate@dmd"):
        cells = [cell for row in table(found, title).rows for cell in row[1:3] if cell != NOT_MEASURED]
        assert cells
        assert all(isinstance(cell, Cell) and cell.origin for cell in cells)
    cell = next(row for row in table(found, "evaluate@dmd").rows if row[0] == "judge.colour")[2]
    assert isinstance(cell, Cell)
    assert cell.origin == f"run {run.run_id}, made outside git, stage evaluate@dmd, key evaluateb"


def test_a_stage_in_only_one_run_is_listed(api: Any, two: tuple[str, str], stage: Make) -> None:
    latency = {"teacher": {"fps": 2.0}, "student": {"fps": 8.0}, "ratio": {"fps": 4.0}}
    stage("measure_latency", two[1], "m", {}, results=latency)
    found = compare.compare(api, two, PUBLISHED, ui=UI)
    assert table(found, "Speed").rows[-1] == ("student faster, times", NOT_MEASURED, "4.0", "15.7")
    assert ("measure_latency", NOT_RUN, "m", "-") in table(found, "Stages by key").rows
    assert "measure_latency" not in found.links


def test_curves_share_panels_and_a_repeated_step_is_used_once(api: Any, two: tuple[str, str]) -> None:
    run = runs.collect(api, two)[0]
    api.log_metric(run.results["train_dmd"].run_id, "loss", 1.5, step=1)
    found = compare.compare(api, two, PUBLISHED, ui=UI)
    first, second = (run.label for run in found.compared)
    steps = [0.0, 1.0, 2.0]
    (curve,), (drift,) = found.curves, found.drifts
    assert (curve.title, curve.x, curve.y) == ("train_dmd", "step", "loss")
    assert curve.lines == {first: (steps, [3.0, 1.5, 2.0]), second: (steps, [3.0, 2.0, 3.0])}
    assert (drift.title, drift.x, drift.y) == ("student: velocity", "window of the rollout", "velocity")
    assert drift.lines == {first: ([0, 1], [0.75, 0.5]), second: ([0, 1], [0.75, 0.75])}
    assert found.bars == {first: {"temporal_flickering": 0.5}, second: {"temporal_flickering": 0.5}}


def test_videos_are_grouped_by_prompt_and_compared_by_noise(api: Any, two: tuple[str, str], stage: Make) -> None:
    (clips,) = compare.compare(api, two, PUBLISHED, ui=UI).clips["student, DMD"]
    assert (clips.caption, clips.same_noise, len(set(clips.videos.values()))) == (CAPTION, True, 2)
    stage("sample@dmd", two[1], "other", {}, grey=90, params={"seed": 1})
    (clips,) = compare.compare(api, two, PUBLISHED, ui=UI).clips["student, DMD"]
    assert not clips.same_noise  # the latest sample@dmd of the second run has another seed


def test_the_page_is_self_contained_and_links_to_mlflow(api: Any, two: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "compare"
    compare.write(compare.compare(api, two, PUBLISHED, ui=UI), out)
    page = (out / "index.html").read_text()
    assert page.count("<video") == 2
    assert "a &lt;red&gt; square &amp; a circle" in page
    sources = set(re.findall(r'src="(.{5})', page))
    assert sources == {"data:"}  # the page loads no other file
    assert f'title="run {runs.collect(api, two)[1].results["clips"].run_id}, made outside git, stage clips' in page
    trained = [run.results["train_dmd"].run_id for run in runs.collect(api, two)]
    assert f"{UI}/#/compare-runs?runs=%5B%22{trained[0]}%22%2C%20%22{trained[1]}%22%5D&amp;experiments=" in page
    text = (out / "compare.md").read_text()
    assert "| colour | 0.500 | 0.750 (+0.250 ± 0.141 ▲) | - |" in text
    panels = {f"{name}-{part}.svg" for name in ("curves", "drift") for part in ("1", "legend")}
    assert {file.name for file in out.iterdir()} == {"index.html", "compare.md", "vbench.svg", *panels}


def test_figures_of_an_earlier_page_are_removed(api: Any, two: tuple[str, str], stage: Make, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    compare.write(compare.compare(api, two, PUBLISHED, ui=UI), out)
    alone = stage("clips", two[0], "k1", {}, results={"kept": 8})
    compare.write(compare.compare(api, [alone], PUBLISHED, ui=UI), out)
    assert {file.name for file in out.iterdir()} == {"index.html", "compare.md"}


def test_the_command_writes_the_page_and_reports_errors(
    api: Any, two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = params.ROOT / "data/inputs/published.yaml"
    compare.main(["causvid/toy"], two[1], tmp_path / "page", published)
    assert capsys.readouterr().out == f"{tmp_path}/page/index.html: 2 runs\n"
    with pytest.raises(SystemExit, match="compare: 'nothing' is neither a run id"):
        compare.main(["nothing"], "", tmp_path / "page", published)


def test_the_baseline_comes_first_and_must_be_one_of_the_runs(api: Any, two: tuple[str, str]) -> None:
    assert [run.run_id for run in runs.collect(api, two, two[1][:8])] == [two[1], two[0]]
    found = compare.compare(api, two, PUBLISHED, ui=UI, baseline=two[1])
    quality = {row[0]: row[1:] for row in table(found, "Quality: student, DMD").rows}
    assert quality["colour"] == ("0.750", "0.500 (-0.250 ± 0.141 ▼)", "-")
    with pytest.raises(ValueError, match="the baseline 'x' is not one of the runs; give one of"):
        runs.collect(api, two, "x")


def test_a_difference_within_its_interval_has_no_verdict(api: Any, two: tuple[str, str], stage: Make) -> None:
    for parent, colour, flicker in ((two[0], 0.5, 0.01), (two[1], 0.6, 0.02)):
        results = {
            "judge": {"colour": colour, "area_cv": 0.1 * colour},
            "intervals": {"colour": [colour - 0.1, colour + 0.1], "area_cv": [0.1 * colour, 0.1 * colour]},
            "flicker": flicker,
        }
        stage("evaluate@dmd", parent, f"again{parent}", {}, results=results)
    quality = {row[0]: row for row in table(compare.compare(api, two, PUBLISHED, ui=UI), "Quality: student, DMD").rows}
    assert quality["colour"][2] == "0.600 (+0.100 ± 0.141)"
    assert quality["size flicker"][2] == "0.060 (+0.010 ± 0.000 ▼)"  # lower is better
    assert quality["flicker"][2] == "0.0200 (+0.0100)"


def test_columns_are_named_by_the_params_that_differ(api: Any, two: tuple[str, str], stage: Make) -> None:
    assert [run.label for run in runs.collect(api, two)] == ["guidance_scale=2.0", "guidance_scale=3.0"]
    again = repro(api)
    stage("train_dmd", again, "traina", {}, params={"seed": 0, "train_dmd": {"guidance_scale": 2.0}})
    assert [run.label for run in runs.collect(api, [*two, again])] == [
        f"guidance_scale=2.0 repro {two[0][:8]}", "guidance_scale=3.0", f"guidance_scale=2.0 repro {again[:8]}",
    ]  # fmt: skip
    assert runs.collect(api, [again])[0].label == f"repro {again[:8]}"


def test_numbers_of_unchanged_stages_are_marked(api: Any, two: tuple[str, str], stage: Make) -> None:
    stage("evaluate@teacher", two[0], "t", {}, results={"judge": {"colour": 1.0}})
    stage("report", two[1], "r", {"evaluate@teacher": "t"})
    quality = {row[0]: row[1:] for row in table(compare.compare(api, two, PUBLISHED, ui=UI), "Quality: teacher").rows}
    assert quality["colour"][:2] == ("1.000", "1.000° (+0.000)")


def test_results_that_no_executed_stage_read_are_taken_over_if_they_are_up_to_date(
    api: Any, two: tuple[str, str], stage: Make
) -> None:
    """The first run has a score of the teacher. The last stage of the second run knows that this score is up to date."""
    stage("evaluate@teacher", two[0], "t", {}, results={"judge": {"colour": 1.0}})
    assert "evaluate@teacher" not in runs.collect(api, two)[1].results
    stage("sample@ode_init", two[1], "s", {}, unchanged={"evaluate@teacher": "t", "train_dmd": "older"})
    found = runs.collect(api, two)[1].results
    assert (found["evaluate@teacher"].made_here, found["evaluate@teacher"].key) == (False, "t")
    assert found["train_dmd"].key == "trainb"  # the run executed this stage itself


def test_without_runs_the_latest_runs_are_listed_with_a_command(
    api: Any, two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.log_metric(two[1], "velocity", 0.98765)
    compare.main([""], "", tmp_path / "page", tmp_path / "unused")
    out = capsys.readouterr().out
    assert f'make compare RUNS="{two[0]} {two[1]}"' in out
    assert "0.988" in out
    assert "train_dmd" not in out
    assert not (tmp_path / "page").exists()


def test_without_any_run_a_sentence_says_so(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main()
    assert capsys.readouterr().out == f"{listing.NONE}\n"
