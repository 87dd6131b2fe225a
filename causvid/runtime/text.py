"""Check that UTF-8 can encode input text, because manifests, prompts and MLflow store UTF-8.

Python's ``str`` can contain two kinds of characters that UTF-8 cannot encode: halves of surrogate pairs, which JSON
writes as ``"\\ud83d"``, and the characters U+DC80 to U+DCFF, with which Python represents bytes of another encoding in
file names and arguments (PEP 383).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NOT_UTF8 = "not_utf8"  # code for rows that are rejected because of their text


def fault(text: str) -> str | None:
    """Return a clause about ``text`` that explains why UTF-8 cannot encode the text; None if UTF-8 can encode it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        byte = f"the byte 0x{code - 0xDC00:02X} of another encoding, or " if 0xDC80 <= code <= 0xDCFF else ""
        return (
            f"holds U+{code:04X} at character {error.start + 1} ({byte}half of a surrogate pair): UTF-8 cannot hold it"
        )
    return None


def require(text: str, name: str) -> None:
    """Check that UTF-8 can encode ``text``, which error messages call ``name``.

    Raises:
        ValueError: UTF-8 cannot encode the text. The message contains the name, text, wrong character and remedy.
    """
    if reason := fault(text):
        raise ValueError(f"{name} is {text!r}, which {reason}; give it in UTF-8")


def escaped(text: str) -> str:
    """Replace every character of ``text`` that UTF-8 cannot encode by a backslash escape."""
    return text.encode(errors="backslashreplace").decode()


def undecodable(content: bytes) -> str | None:
    """Return a clause about ``content`` that explains why it is not UTF-8; None if it is UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"is not a UTF-8 text ({error.reason}: byte 0x{content[error.start]:02X} in line {line})"
    return None


def decode(content: bytes, name: str) -> str:
    """Decode ``content``, which error messages call ``name``, from UTF-8 with or without a byte order mark.

    Raises:
        ValueError: ``content`` is not UTF-8. The message contains the name, first wrong byte, line and remedy.
    """
    if reason := undecodable(content):
        raise ValueError(f"{name} {reason}; save it as UTF-8")
    return content.decode("utf-8-sig")


def prompt_list(prompts: str | Iterable[str], name: str = "prompts") -> list[str]:
    """Convert one prompt or several prompts to a list.

    Args:
        prompts: One prompt, or an iterable of prompts.
        name: Name of the argument, for error messages.

    Raises:
        ValueError: A prompt is not a string.
    """
    listed: list[Any] = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [prompts]
    for prompt in listed:
        if not isinstance(prompt, str):
            raise ValueError(f"{name} has {prompt!r:.100}; expected a string, or a sequence of strings")
    return listed
