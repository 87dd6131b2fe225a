"""A stage that ends early, for any reason, leaves its previous outputs in place, never a mixture with new outputs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from causvid.harness import outputs
from causvid.params import ROOT

DVC = str(Path(sys.executable).with_name("dvc"))
PIPELINE = f"""\
stages:
  train:
    cmd: exec {sys.executable} train.py
    params: [train]
    deps: [train.py]
    outs: [data/model, data/samples]
    metrics: [reports/train.json: {{cache: false}}]
"""
# The stage publishes the model, then does what params.yaml says, then publishes the rest.
STAGE = """\
import os, sys, time
from pathlib import Path
from causvid.harness import outputs
if "first: wait" in Path("params.yaml").read_text():
    Path("waiting").write_text(str(os.getpid()))
    time.sleep(60)
outputs.begin()
from ruamel.yaml import YAML
from causvid.runtime import files

train = YAML(typ="safe").load(Path("params.yaml"))["train"]
before, after = train.get("before"), train.get("after")

def do(what):
    if what == "wait":
        files.write_text(Path("waiting"), str(os.getpid()))
        time.sleep(60)
    elif what == "raise":
        raise ValueError("a mistake")
    elif what == "exit":
        sys.exit("a mistake")

def publish(name):
    Path("work", name).mkdir(parents=True)
    Path("work", name, "weights").write_text(f"{name} {train['value']}")
    files.publish(Path("work", name), Path("data", name))

do(train.get("early"))
with outputs.kept():
    do(before)
    publish("model")
    do(after)
    publish("samples")
    files.write_json(Path("reports/train.json"), {"value": train["value"]})
"""


class Project:
    """A DVC project with one stage that has been run with the value 1."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
        (root / ".dvc").mkdir(parents=True)
        (root / ".dvc" / "config").touch()
        (root / "reports").mkdir()
        (root / "dvc.yaml").write_text(PIPELINE)
        (root / "train.py").write_text(STAGE)
        subprocess.run(["git", "init", "--quiet", str(root)], check=True)
        self.params(value=1)
        self.repro()
        self.before = self.content()
        assert self.before == {
            "data/model/weights": "model 1",
            "data/samples/weights": "samples 1",
            "reports/train.json": '{\n  "value": 1\n}\n',
        }

    def params(self, **train: object) -> None:
        entries = ", ".join(f"{name}: {value}" for name, value in train.items())
        (self.root / "params.yaml").write_text(f"train: {{{entries}}}\n")

    def content(self) -> dict[str, str]:
        files = [path for part in ("data", "reports") for path in (self.root / part).rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_text() for path in files if path.name != ".gitignore"}

    def start(self) -> subprocess.Popen[str]:
        """Start ``dvc repro`` in its own process group."""
        shutil.rmtree(self.root / "work", ignore_errors=True)
        (self.root / "waiting").unlink(missing_ok=True)
        return subprocess.Popen(
            [DVC, "repro"], cwd=self.root, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def repro(self, *, fails: bool = False) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=120)
        assert bool(process.returncode) == fails, output
        return output

    def stop(self, act: Callable[[subprocess.Popen[str], int], None]) -> str:
        """Start ``dvc repro``, call ``act`` with dvc and the pid of the stage when it waits, and return the output."""
        process = self.start()
        deadline = time.monotonic() + 60
        while not (self.root / "waiting").exists():
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not (self.root / "data" / "samples").exists()  # DVC has deleted the outputs
        act(process, int((self.root / "waiting").read_text()))
        output, _ = process.communicate(timeout=60)
        assert process.returncode
        return output


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    shutil.copytree(template.root, tmp_path / "project", symlinks=True)
    copy = Project.__new__(Project)
    copy.root, copy.env, copy.before = tmp_path / "project", template.env, template.before
    return copy


def group(number: int) -> Callable[[subprocess.Popen[str], int], None]:
    return lambda process, _: os.killpg(process.pid, number)


def marks(project: Project) -> list[Path]:
    return [*(project.root / ".dvc" / "tmp" / "stages").glob("*")]


def test_a_finished_stage_has_its_new_outputs(project: Project) -> None:
    project.params(value=2)
    assert "in place again" not in project.repro()
    assert project.content()["data/model/weights"] == "model 2"
    assert marks(project) == []
    assert [*outputs.repair(project.root)] == []


@pytest.mark.parametrize(
    ("where", "what"), [("early", "raise"), ("before", "exit"), ("after", "raise")], ids=["imports", "start", "end"]
)
def test_an_error_leaves_the_previous_outputs(project: Project, where: str, what: str) -> None:
    project.params(value=2, **{where: what})
    output = project.repro(fails=True)
    assert project.content() == project.before
    assert "a mistake" in output
    assert "train: the previous data/model and data/samples and reports/train.json are in place again" in output
    assert marks(project) == []


@pytest.mark.parametrize("where", ["early", "before", "after"])
def test_ctrl_c_leaves_the_previous_outputs(project: Project, where: str) -> None:
    project.params(value=2, **{where: "wait"})
    assert "are in place again" in project.stop(group(signal.SIGINT))
    assert project.content() == project.before
    assert marks(project) == []


def test_sigterm_leaves_the_previous_outputs(project: Project) -> None:
    project.params(value=2, after="wait")
    project.stop(lambda _, stage: os.kill(stage, signal.SIGTERM))
    assert project.content() == project.before
    assert marks(project) == []


def test_a_second_ctrl_c_does_not_stop_the_restore(project: Project) -> None:
    project.params(value=2, after="wait")

    def press_often(process: subprocess.Popen[str], stage: int) -> None:
        for _ in range(200):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.01)
            if not psutil.pid_exists(stage):
                return

    project.stop(press_often)
    assert project.content() == project.before


@pytest.mark.parametrize(
    ("where", "alone"),
    [("first", False), ("early", False), ("after", False), ("after", True)],
    ids=["before the guard", "imports", "end", "only dvc"],
)
def test_after_sigkill_the_next_command_puts_the_outputs_back(project: Project, where: str, alone: bool) -> None:
    project.params(value=2, **{where: "wait"})

    def kill(process: subprocess.Popen[str], stage: int) -> None:
        if alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(stage)] if psutil.pid_exists(stage) else [])

    project.stop(kill)
    assert project.content() != project.before
    (said,) = outputs.repair(project.root)
    assert said.startswith("train was killed: the previous data/model and data/samples and reports/train.json are")
    assert project.content() == project.before
    assert [*outputs.repair(project.root)] == []


def test_a_stage_that_runs_is_left_alone(project: Project) -> None:
    project.params(value=2, after="wait")

    def look(process: subprocess.Popen[str], stage: int) -> None:
        during = project.content()
        assert [*outputs.repair(project.root)] == []
        assert project.content() == during
        os.killpg(process.pid, signal.SIGINT)

    project.stop(look)
    assert project.content() == project.before


def test_a_stage_that_never_finished_says_nothing(project: Project) -> None:
    (project.root / "dvc.lock").unlink()
    project.params(value=2, after="raise")
    assert "previous" not in project.repro(fails=True)
    assert marks(project) == []


def test_outputs_that_the_cache_does_not_have_are_named(project: Project) -> None:
    project.params(value=2, after="raise")
    for content in (project.root / ".dvc" / "cache" / "files").rglob("*"):
        if content.is_file() and "value" in content.read_text():  # the metrics
            content.chmod(0o644)
            content.unlink()
    output = project.repro(fails=True)
    assert "are in place again; DVC's cache does not contain reports/train.json" in output
    assert project.content() == {name: text for name, text in project.before.items() if name != "reports/train.json"}


def test_dvc_regards_the_outputs_as_unchanged_and_the_stage_runs_again(project: Project) -> None:
    project.params(value=2, after="raise")
    project.repro(fails=True)
    status = subprocess.run(
        [DVC, "status"], cwd=project.root, env=project.env, capture_output=True, text=True, check=True
    )
    assert "changed outs" not in status.stdout
    project.params(value=1)
    assert "didn't change" in project.repro()
    project.params(value=2)
    project.repro()
    assert project.content()["data/samples/weights"] == "samples 2"


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_the_outputs_have_the_link_type_of_the_cache(project: Project, kind: str) -> None:
    (project.root / ".dvc" / "config").write_text(f"[cache]\n    type = {kind}\n")
    project.params(value=2, after="raise")
    project.repro(fails=True)
    assert project.content() == project.before
    weights = project.root / "data" / "model" / "weights"
    assert weights.is_symlink() if kind == "symlink" else weights.stat().st_nlink == 2
    assert not (project.root / "reports" / "train.json").is_symlink()
    assert (project.root / "reports" / "train.json").stat().st_nlink == 1


def test_a_failed_restore_keeps_the_error_of_the_stage_and_the_next_command_tries_again(project: Project) -> None:
    project.params(value=2, after="raise")
    blocked = project.root / ".dvc" / "tmp" / "restoring"
    blocked.write_text("a file, where the folder must be")
    output = project.repro(fails=True)
    assert "ValueError: a mistake" in output
    assert "train: the previous outputs are not in place; the next command tries again (" in output
    blocked.unlink()
    (said,) = outputs.repair(project.root)
    assert "are in place again" in said
    assert project.content() == project.before


def test_a_stage_that_was_removed_from_dvc_yaml_is_forgotten(project: Project) -> None:
    project.params(value=2, after="wait")
    project.stop(group(signal.SIGKILL))
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    assert [*outputs.repair(project.root)] == []
    assert marks(project) == []


def test_a_stage_in_a_subfolder_and_a_dvc_in_a_subfolder(project: Project) -> None:
    sub = project.root / "sub"
    sub.mkdir()
    text = (project.root / "dvc.yaml").read_text().replace("  train:\n", "  train:\n    wdir: ..\n")
    (sub / "dvc.yaml").write_text(text)
    (project.root / "dvc.yaml").unlink()
    (project.root / "dvc.lock").rename(sub / "dvc.lock")
    project.params(value=2, after="raise")
    for folder, target in ((project.root, "sub/dvc.yaml:train"), (sub, "train")):
        shutil.rmtree(project.root / "work", ignore_errors=True)
        done = subprocess.run([DVC, "repro", target], cwd=folder, env=project.env, capture_output=True, text=True)
        assert done.returncode
        assert "are in place again" in done.stderr
        assert project.content() == project.before
