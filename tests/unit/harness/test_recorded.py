"""dvc.lock gives the checksums of outs and the keys of upstream stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causvid.harness import recorded

LOCK = """\
stages:
  clips:
    deps: [{path: in.txt, md5: a}]
    outs: [{path: data/clips, md5: b.dir}, {path: reports/clips/metrics.json, md5: c}]
  other:
    outs: [{path: data/clips_too, md5: d.dir}, {path: reports/other/metrics.json, md5: e}]
  sample@dmd:
    deps: [{path: data/clips, md5: b.dir}]
    outs: [{path: data/samples/dmd, md5: f.dir}]
  evaluate@dmd:
    deps: [{path: data/samples/dmd, md5: f.dir}]
    outs: [{path: reports/evaluate/dmd.json, md5: g}]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.lock").write_text(LOCK)
    for name, key in (("clips/metrics", "k1"), ("other/metrics", "k2"), ("evaluate/dmd", "k3")):
        path = tmp_path / "reports" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": key, "n": 1}))
    return tmp_path


def test_digests_has_the_checksums_of_outs_by_path(root: Path) -> None:
    found = recorded.digests(recorded.read_lock(root))
    assert (found["data/clips"], found["reports/evaluate/dmd.json"]) == ("b.dir", "g")
    assert "in.txt" not in found  # no stage writes this path


@pytest.mark.parametrize(
    ("read", "stages"),
    [
        ("in.txt", {}),
        ("data/clips", {"clips": "k1"}),
        ("data/clips_too", {"other": "k2"}),  # the name starts with the name of another out
        ("data/samples/dmd/rollouts", {"clips": "k1"}),  # the path is a folder inside an out; sample@dmd has no key
        ("reports/evaluate", {"clips": "k1", "evaluate@dmd": "k3"}),  # the path is a folder that contains outs
    ],
)
def test_upstream_has_the_keys_of_the_stages_that_lead_to_an_input(
    root: Path, read: str, stages: dict[str, str]
) -> None:
    assert recorded.upstream(recorded.read_lock(root), [Path(read)], root) == stages


@pytest.mark.parametrize(
    ("before", "after", "stages"),
    [
        ("", "", {"clips": "k1", "other": "k2", "evaluate@dmd": "k3"}),
        # The clips were made again. The samples were not, so that the scores of the samples are also out of date.
        (
            "outs: [{path: data/clips, md5: b.dir}",
            "outs: [{path: data/clips, md5: new.dir}",
            {"clips": "k1", "other": "k2"},
        ),
        # The samples were made again, but not the scores.
        ("dmd, md5: f.dir}]\n  evaluate", "dmd, md5: new.dir}]\n  evaluate", {"clips": "k1", "other": "k2"}),
    ],
)
def test_unchanged_has_the_keys_of_the_stages_that_are_up_to_date(
    root: Path, before: str, after: str, stages: dict[str, str]
) -> None:
    assert before in LOCK
    (root / "dvc.lock").write_text(LOCK.replace(before, after))
    assert recorded.unchanged(recorded.read_lock(root), root) == stages


def test_a_missing_or_empty_lock_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert recorded.read_lock(tmp_path) == {}
    (tmp_path / "dvc.lock").write_text("")
    assert recorded.read_lock(tmp_path) == {}
