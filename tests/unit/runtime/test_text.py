"""External text is accepted unchanged, or rejected with the place of the error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from causvid.runtime import text

ANY = st.text(st.characters())  # these strings include unpaired surrogates


@given(value=ANY)
@example(value="\ud83d")
@example(value="one \udfff")
@example(value="\ude00\ud83d turned round")
@example(value="a \ud83d\ude00 of two halves")
def test_text_is_accepted_or_the_wrong_character_is_named(value: str) -> None:
    reason, held = text.fault(value), not any("\ud800" <= character <= "\udfff" for character in value)
    assert (reason is None) == held
    assert text.escaped(value).encode().decode() == text.escaped(value)
    if held:
        assert text.escaped(value) == value
        text.require(value, "it")
    else:
        place = next(k for k, character in enumerate(value) if "\ud800" <= character <= "\udfff")
        with pytest.raises(ValueError, match=rf"it is .*, which holds U\+D[8-F].* at character {place + 1} "):
            text.require(value, "it")


@given(content=st.binary())
@example(content="café".encode("latin-1"))
@example(content="ビデオ".encode("shift-jis"))
@example(content="two\nlines".encode("utf-16"))
@example(content=b"\xed\xa0\xbd")  # one half of a surrogate pair
@example(content=b"cut \xf0\x9f\x98")
@example(content=b"\xef\xbb\xbfa mark")
def test_bytes_are_decoded_or_the_first_wrong_byte_is_named(content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        with pytest.raises(ValueError, match=rf"it is not a .*: byte 0x{content[error.start]:02X} in line {line}\);"):
            text.decode(content, "it")
    else:
        assert text.decode(content, "it") == content.decode("utf-8-sig")


def test_the_error_names_the_byte_and_its_line() -> None:
    content = b"\xef\xbb\xbfone\ntwo\nthr\xe9e\n"
    with pytest.raises(ValueError, match=r"it is not a UTF-8 text \(.*: byte 0xE9 in line 3\); save it as UTF-8"):
        text.decode(content, "it")


@pytest.mark.parametrize("prompt", [b"caf\xe9", b"\x83r\x83f\x83I", b"\xff\xfea", b"\xed\xa0\xbd half"])
def test_a_wrong_prompt_on_the_command_line_is_rejected_at_once(tmp_path: Path, prompt: bytes) -> None:
    """The error names the prompt and is raised before weights are loaded. No file is written."""
    command = [sys.executable, "-m", "causvid.generate.command", "generate", "--checkpoint", str(tmp_path / "none")]
    done = subprocess.run(
        [*map(os.fsencode, command), b"--out", os.fsencode(tmp_path / "out"), b"--prompt", prompt],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "causvid: --prompt is " in done.stderr
    assert "UTF-8 cannot hold it; give it in UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["caf\udce9", "\udcff\udcfe", "\udc83r"])
def test_the_last_line_is_printed_for_every_folder_name(name: str) -> None:
    script = f"from causvid.generate.command import _say\n_say(lambda: {name!r} + ': 1 videos')"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout == name.encode(errors="backslashreplace").decode() + ": 1 videos\n"
