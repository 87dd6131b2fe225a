"""manifest.jsonl: any text survives, and what is wrong is named by file and line."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from causvid.data import manifest

ROWS = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=3), max_size=4
)


@given(rows=ROWS)
@example(
    rows=[{"id": "1", "caption": "line\u2028separator and \u0085next line"}, {"id": "2", "caption": "\x1c\r\n\x0b"}]
)
def test_any_text_survives(rows: list[dict[str, Any]]) -> None:
    """Captions come from people: they hold line separators that str.splitlines knows and JSON does not."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / manifest.NAME
        manifest.write_rows(path, rows)
        assert manifest.read_rows(path) == rows


def test_bytes_depend_on_the_rows_only(tmp_path: Path) -> None:
    manifest.write_rows(tmp_path / "a", [{"id": "é", "frames": 5}])
    manifest.write_rows(tmp_path / "b", [{"frames": 5, "id": "é"}])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == '{"frames": 5, "id": "é"}\n'.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": \n', r"line 2: not JSON"),
        ('{"id": 1}\n\n{"id": 2}\n', r"line 2: not JSON"),
        ('{"id": 1}\n[1]\n', r"line 2: expected a JSON object, found list"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{manifest.NAME}, {message}"):
        manifest.read_manifest(tmp_path)


def test_no_manifest_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no manifest.jsonl; run the stage"):
        manifest.read_manifest(tmp_path)
    manifest.write_rows(tmp_path / manifest.NAME, [])
    with pytest.raises(ValueError, match="lists nothing; see rejected.jsonl"):
        manifest.read_manifest(tmp_path)


def test_the_last_rows_are_held_out() -> None:
    rows = [{"id": str(k)} for k in range(5)]
    assert manifest.split(rows, 2) == (rows[:3], rows[3:])
    for held_out in (0, 5, 9, -1):
        with pytest.raises(ValueError, match=rf"train_vae.held_out_clips is {held_out} of 5 clips"):
            manifest.split(rows, held_out)
