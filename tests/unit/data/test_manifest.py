"""manifest.jsonl preserves any text, and an error about the manifest names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from causvid.data.videos import manifest

ROWS = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=3), max_size=4
)


@given(rows=ROWS)
@example(
    rows=[{"id": "1", "caption": "line\u2028separator and \u0085next line"}, {"id": "2", "caption": "\x1c\r\n\x0b"}]
)
def test_any_text_is_read_as_it_was_written(rows: list[dict[str, Any]]) -> None:
    """Captions may contain characters at which str.splitlines splits and which JSON does not escape."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / manifest.NAME
        manifest.write_rows(path, rows)
        assert manifest.read_rows(path) == rows


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.text(st.characters(), max_size=20), max_size=3), max_size=4)
)
@example(rows=[{"reason": "half \ud83d"}, {"reason": "\udfff"}, {"source": "caf\udce9.mp4"}, {"source": "\\\udce9\\"}])
@example(rows=[{"caption": "\x00 \x01 \r lone \x7f \u0085 \u2028 \u2029 \ufeff \uffff"}])
def test_rows_of_any_text_are_written_and_read_again(rows: list[dict[str, Any]]) -> None:
    """A reason may quote text that UTF-8 cannot encode, and rejected.jsonl is valid UTF-8 nevertheless."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / manifest.NAME
        manifest.write_rows(path, rows)
        path.read_bytes().decode()
        # JSON encodes a surrogate pair and the two separate surrogates in the same way.
        joined = [{name: json.loads(json.dumps(value)) for name, value in row.items()} for row in rows]
        assert manifest.read_rows(path) == joined


@pytest.mark.parametrize("caption", ["half \\ud83d", "\\udc00", "\\ude00\\ud83d"])
def test_a_manifest_whose_text_utf8_cannot_hold_is_refused(tmp_path: Path, caption: str) -> None:
    (tmp_path / manifest.NAME).write_text('{"id": "0", "caption": "fine"}\n{"id": "1", "caption": "' + caption + '"}\n')
    with pytest.raises(ValueError, match=r"manifest.jsonl: the row '1' is .*, which holds U\+D.*give it in UTF-8"):
        manifest.read_manifest(tmp_path)


def test_a_manifest_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_bytes(b'{"id": 0}\n{"caption": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"manifest.jsonl is not a UTF-8 text \(.*: byte 0xE9 in line 2\)"):
        manifest.read_manifest(tmp_path)


def test_bytes_depend_on_the_rows_only(tmp_path: Path) -> None:
    manifest.write_rows(tmp_path / "a", [{"id": "é", "frames": 5}])
    manifest.write_rows(tmp_path / "b", [{"frames": 5, "id": "é"}])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == '{"frames": 5, "id": "é"}\n'.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": \n', r"line 2: not JSON"),
        ('{"id": 1}\n\n{"id": 2}\n', r"line 2: not JSON"),
        ('{"id": 1}\n[1]\n', r"line 2: expected a JSON object, got list"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{manifest.NAME}, {message}"):
        manifest.read_manifest(tmp_path)


def test_a_missing_and_an_empty_manifest_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no manifest.jsonl; run the stage"):
        manifest.read_manifest(tmp_path)
    manifest.write_rows(tmp_path / manifest.NAME, [])
    with pytest.raises(ValueError, match="is empty; rejected.jsonl in the same folder"):
        manifest.read_manifest(tmp_path)


def test_the_last_rows_are_held_out() -> None:
    rows = [{"id": str(k)} for k in range(5)]
    assert manifest.split(rows, 2) == (rows[:3], rows[3:])
    for held_out in (0, 5, 9, -1):
        with pytest.raises(ValueError, match=rf"train_vae.held_out_clips is {held_out} of 5 clips"):
            manifest.split(rows, held_out)
