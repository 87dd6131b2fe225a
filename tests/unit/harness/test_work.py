"""A stage has a key, locks its work folder, and publishes results by rename."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from causvid.harness import work
from causvid.params import ROOT
from causvid.runtime import files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with a stage, a module that it imports, a neutral module, and an input folder."""
    files = {
        "stages/toy.py": "import causvid.verb\nimport causvid.harness.tracking\n",
        "causvid/verb.py": "x = 1\n",
        "causvid/harness/tracking.py": "y = 1\n",
        "data/in/a": "one",
        "data/in/sub/b": "two",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def key_of(project: Path, **changes: Any) -> str:
    asked: dict[str, Any] = {
        "params": {"seed": 0, "video": {"fps": 8}},
        "inputs": [Path("data/in")],
        "known": {},
        **changes,
    }
    return work.stage_origin("toy", root=project, **asked).key


def rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda project: (project / name).write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        rewrite("data/in/a", "One"),
        rewrite("data/in/c", ""),
        lambda p: (p / "data/in/a").rename(p / "data/in/aa"),
        rewrite("causvid/verb.py", "x = 2\n"),
        rewrite("stages/toy.py", "import causvid.verb\n"),
    ],
    ids=["content", "a new empty file", "a name", "a module", "the stage"],
)
def test_inputs_and_code_change_the_key(project: Path, change: Callable[[Path], object]) -> None:
    before = key_of(project)
    change(project)
    assert key_of(project) != before


def test_params_change_the_key_and_their_order_does_not(project: Path) -> None:
    before = key_of(project)
    assert key_of(project, params={"video": {"fps": 8}, "seed": 0}) == before
    assert key_of(project, params={"seed": 1, "video": {"fps": 8}}) != before
    assert len(before) == 16


@pytest.mark.parametrize("name", ["causvid/harness/tracking.py", "causvid/unrelated.py", "README.md"])
def test_neutral_and_unrelated_files_do_not_change_the_key(project: Path, name: str) -> None:
    before = key_of(project)
    rewrite(name, "z = 3\n")(project)
    assert key_of(project) == before


def test_a_missing_input_and_an_empty_input_have_different_keys(project: Path) -> None:
    absent = key_of(project, inputs=[Path("data/none")])
    (project / "data/none").mkdir()
    assert key_of(project, inputs=[Path("data/none")]) != absent


def test_a_known_checksum_replaces_reading_the_content(project: Path) -> None:
    """DVC has just verified large inputs, so these inputs are not read again."""
    known = key_of(project, known={"data/in": "aa"})
    assert known != key_of(project)
    (project / "data/in/a").write_text("other")
    assert key_of(project, known={"data/in": "aa"}) == known
    assert key_of(project, known={"data/in": "bb"}) != known


def test_a_variable_moves_the_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with work.work_folder("toy", "k1", root=tmp_path) as folder:
        assert folder == tmp_path / ".work" / "toy" / "k1"
    monkeypatch.setenv("CAUSVID_WORK_DIR", str(tmp_path / "scratch"))
    with work.work_folder("toy", "k1", root=tmp_path) as folder:
        assert folder == tmp_path / "scratch" / "toy" / "k1"


def test_a_second_process_is_refused_and_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom causvid.harness.work import work_folder\n"
        "with work_folder('toy', 'k', root=Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(work.BusyError, match="another process does the same work"),
            work.work_folder("toy", "k", root=tmp_path),
        ):
            pass
        with work.work_folder("toy", "another key", root=tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with work.work_folder("toy", "k", root=tmp_path):
        pass


def make(path: Path, content: str | dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    return path


@pytest.mark.parametrize("same_file_system", [True, False])
@pytest.mark.parametrize("old", [None, "old file", {"stale": "x", "kept": "old"}], ids=["nothing", "file", "folder"])
def test_publish_replaces_the_target_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: Any, same_file_system: bool
) -> None:
    if not same_file_system:

        def no_rename(*_: object, **__: object) -> None:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "rename", no_rename)
        monkeypatch.setattr(Path, "rename", no_rename)
    target = tmp_path / "data" / "out"
    if old is not None:
        make(target, old)
    finished = make(tmp_path / "work" / "out", "new" if isinstance(old, str) else {"kept": "new"})
    files.publish(finished, target)
    if isinstance(old, str):
        assert target.read_text() == "new"
    else:
        assert {p.name: p.read_text() for p in target.iterdir()} == {"kept": "new"}
    assert not finished.exists()
    assert [p.name for p in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("same_file_system", [True, False])
@pytest.mark.parametrize(
    ("leads_to", "new"),
    [("folder", {"a": "new"}), ("folder", "new"), ("file", "new"), ("file", {"a": "new"}), ("nowhere", {"a": "new"}),
     ("link", {"a": "new"})],
)  # fmt: skip
def test_publish_replaces_a_link_and_leaves_its_target_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads_to: str, new: Any, same_file_system: bool
) -> None:
    if not same_file_system:
        monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "elsewhere")))
    make(tmp_path / "folder", {"theirs": "kept"})
    make(tmp_path / "file", "kept")
    (tmp_path / "link").symlink_to("folder")
    target = tmp_path / "data" / "raw"
    target.parent.mkdir()
    target.symlink_to(tmp_path / leads_to)
    files.publish(make(tmp_path / "work" / "out", new), target)
    assert not target.is_symlink()
    found = {p.name: p.read_text() for p in target.iterdir()} if target.is_dir() else target.read_text()
    assert found == new
    assert (tmp_path / "folder" / "theirs").read_text() == (tmp_path / "file").read_text() == "kept"
    assert [path.name for path in target.parent.iterdir()] == ["raw"]


def test_publish_into_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to("elsewhere")
    files.publish(make(tmp_path / "out", {"a": "new"}), tmp_path / "data" / "raw")
    assert (tmp_path / "elsewhere" / "raw" / "a").read_text() == "new"


def test_leftovers_of_a_killed_publication_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path / ".out.publishing", {"half": "done"})
    files.publish(make(tmp_path / "finished", {"a": "1"}), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert not (tmp_path / ".out.publishing").exists()


def test_a_failed_publication_leaves_the_old_result_unchanged(tmp_path: Path) -> None:
    make(tmp_path / "out", {"a": "old"})
    with pytest.raises(OSError, match="nowhere"):
        files.publish(tmp_path / "nowhere", tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_timeout_of_another_lock_is_not_a_busy_error(tmp_path: Path) -> None:
    with pytest.raises(Timeout), work.work_folder("toy", "k", root=tmp_path):
        raise Timeout("lock of a model hub")


def test_write_text_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reports" / "metrics.json"
    files.write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_json_is_sorted_readable_and_never_nan(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    files.write_json(path, {"b": 1.5, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1.5\n}\n'
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(path, {"a": bad})
    assert json.loads(path.read_text(encoding="utf-8"))["b"] == 1.5
