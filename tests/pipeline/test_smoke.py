"""The complete pipeline gives its results at smoke size, and a change reruns only the affected stages."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable

import pytest
from ruamel.yaml import YAML

from causvid import params
from causvid.harness import inputs
from causvid.profile import PATHS
from causvid.reporting.tables import MODELS
from tests.pipeline.conftest import Clone

pytestmark = pytest.mark.pipeline


def ran(output: str) -> list[str]:
    """Return the stages that ``dvc repro`` executed, according to its output."""
    return re.findall(r"^Running stage '(.+)':$", output, re.MULTILINE)


def changed(clone: Clone) -> set[str]:
    """Return the stages that are not up to date, except checksums, which DVC always regards as changed."""
    return set(json.loads(clone.run("dvc", "status", "dvc.yaml", "--json").stdout)) - {"checksums"}


def test_the_report_and_the_metrics_are_complete(smoke: Clone) -> None:
    report = (smoke.root / "reports" / "index.html").read_text()
    assert report.count("<video") >= 6
    assert "http://" not in report.replace("http://www.w3.org/", "")
    assert json.loads((smoke.root / "reports" / "evaluate" / "clips.json").read_text())["judge"]["colour"] >= 0.98
    rejected = json.loads((smoke.root / "reports" / "resample" / "metrics.json").read_text())
    assert rejected["kept"] == 24


def test_no_file_contains_secrets_of_the_environment(smoke: Clone) -> None:
    """The search covers logs, databases, locks, checkpoints and reports. A secret in a new file is found."""
    assert smoke.leaks() == []
    (smoke.root / "leak.txt").write_text(f"token={smoke.env['HF_TOKEN']}\n")
    assert smoke.leaks() == [str(smoke.root / "leak.txt")]
    (smoke.root / "leak.txt").unlink()


def test_a_second_repro_changes_nothing(smoke: Clone) -> None:
    before = smoke.hashes()
    assert ran(smoke.run("dvc", "repro").stdout) == ["checksums"]
    assert changed(smoke) == set()
    assert smoke.hashes() == before


def test_mlflow_has_a_child_run_for_every_stage(smoke: Clone) -> None:
    with sqlite3.connect(smoke.root / "mlflow.db") as db:
        stages = [row[0] for row in db.execute("select value from tags where key = 'dvc_stage'")]
        parents = {row[0] for row in db.execute("select value from tags where key = 'mlflow.parentRunId'")}
        runs = {row[0]: row[1:] for row in db.execute("select run_uuid, name, status from runs")}
        models = dict(db.execute("select model_id, name from logged_models"))
        scored = set(db.execute("select model_id, run_id from logged_model_metrics"))
    assert sorted(stages) == sorted(smoke.hashes().keys() - {"checksums"})
    assert [runs[parent][0].split(" · ")[0] for parent in parents] == ["smoke"]
    assert {status for _, status in runs.values()} == {"FINISHED"}
    assert sorted(models.values()) == ["causal_teacher", "dmd", "ode_init", "teacher", "vae"]
    assert {(models[model], runs[run][0]) for model, run in scored} == {
        (model, f"{stage}@{model}") for model in MODELS for stage in ("sample", "evaluate")
    }


def test_workers_rerun_no_stage_and_a_changed_param_reruns_only_its_stages(smoke: Clone) -> None:
    smoke.set(compute__workers=2)
    assert changed(smoke) == set()
    smoke.set(compute__workers=1)
    smoke.set(sample__rollouts=1)
    assert changed(smoke) >= {f"sample@{model}" for model in MODELS}
    assert not changed(smoke) & {"download", "train_vae", "train_teacher", "train_dmd", "measure_latency"}
    smoke.set(sample__rollouts=2)
    assert changed(smoke) == set()


def test_changed_content_of_a_path_in_params_reruns_the_stages_that_read_the_path(smoke: Clone) -> None:
    """The test replaces files by files of equal size and modification time, and adds a file to each folder."""
    values = params.read(smoke.root / "params.yaml")
    counted = [name for name, rule in PATHS.items() if not rule.counted_by]
    names = [name for name in counted if not inputs.is_output(inputs.value_of(values, name))]
    before = {}
    for path in {smoke.root / inputs.value_of(values, name) for name in names}:
        if path.is_file():
            before[path], times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
            path.unlink()
            path.write_bytes(before[path][::-1])
            os.utime(path, ns=times)
        else:
            before[path / "new" if path.is_dir() else path] = None
    for path, content in before.items():
        if content is None:
            path.write_text("new")
    readers = {
        f"{stage}@{item}" if item else stage
        for stage, stanza in YAML(typ="safe").load(smoke.root / "dvc.yaml")["stages"].items()
        for item in stanza.get("foreach", {"": ""})
        for key in stanza.get("do", stanza).get("params", [])
        for name in names
        if f"{name}.".startswith(f"{key}.")
    }
    assert {"download", "train_vae", "encode_prompts", "train_teacher", "train_causal_teacher"} <= readers
    assert {"train_ode_init", "evaluate@dmd"} <= readers
    smoke.run("dvc", "repro", "checksums")
    assert changed(smoke) == readers
    for path, content in before.items():
        path.unlink() if content is None else path.write_bytes(content)
    smoke.run("dvc", "repro", "checksums")
    assert changed(smoke) == set()


def test_zero_dmd_steps_give_the_ode_init_student_and_a_reverted_change_is_restored_from_the_cache(
    smoke: Clone,
) -> None:
    smoke.set(train_dmd__steps=0)
    executed = ran(smoke.run("dvc", "repro", "evaluate@dmd", "evaluate@ode_init").stdout)
    assert "train_dmd" in executed
    assert "train_teacher" not in executed
    scores = [
        json.loads((smoke.root / "reports" / "evaluate" / f"{name}.json").read_text()) for name in ("dmd", "ode_init")
    ]
    for score in scores:
        score.pop("key")
    assert scores[0] == scores[1]
    smoke.set(train_dmd__steps=6)
    output = smoke.run("dvc", "repro").stdout
    assert "Stage 'train_dmd' is cached - skipping run" in output
    assert set(ran(output)) <= {"checksums", "report", "measure_latency"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video__frames": 22}, "video.frames is 22"),
        ({"model__frames_per_block": 4}, "model.frames_per_block is 4"),
        ({"schedule__denoising_timesteps": [1000, 600]}, "schedule.denoising_timesteps has 600"),
    ],
)
def test_an_invalid_value_stops_the_first_stage_with_one_sentence(
    make_clone: Callable[[str], Clone], change: dict[str, object], message: str
) -> None:
    clone = make_clone("bad")
    clone.set(**change)
    done = clone.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
