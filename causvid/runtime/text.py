"""The rule for text from outside: UTF-8 must be able to hold it, because manifests, prompts and MLflow store UTF-8.

A ``str`` of Python can hold more than UTF-8: halves of surrogate pairs, which JSON spells ``"\\ud83d"``, and bytes of
another encoding in file names and arguments, which Python reads as U+DC80 to U+DCFF (PEP 383).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NOT_UTF8 = "not_utf8"  # code of a row that is rejected for its text


def fault(text: str) -> str | None:
    """The reason why UTF-8 cannot hold ``text``, as a clause that follows the name of the text; None when it can."""
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
    """Refuse ``text``, which the user knows as ``name``, when UTF-8 cannot hold it.

    Raises:
        ValueError: Names ``name``, the text, the character and the remedy.
    """
    if reason := fault(text):
        raise ValueError(f"{name} is {text!r}, which {reason}; give it in UTF-8")


def escaped(text: str) -> str:
    """``text`` with a backslash escape for every character that UTF-8 cannot hold. Other text stays as it is."""
    return text.encode(errors="backslashreplace").decode()


def undecodable(content: bytes) -> str | None:
    """The reason why ``content`` is not UTF-8, as a clause that follows its name; None when it is UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"is not a UTF-8 text ({error.reason}: byte 0x{content[error.start]:02X} in line {line})"
    return None


def decode(content: bytes, name: str) -> str:
    """Decode ``content``, which the user knows as ``name``, from UTF-8 with or without a byte order mark.

    Raises:
        ValueError: Names ``name``, the first byte that is not UTF-8, its line and the remedy.
    """
    if reason := undecodable(content):
        raise ValueError(f"{name} {reason}; save it as UTF-8")
    return content.decode("utf-8-sig")


def prompt_list(prompts: str | Iterable[str], name: str = "prompts") -> list[str]:
    """Return ``prompts`` as a list.

    Args:
        prompts: One prompt, or any number of them.
        name: The argument's name, for the error.

    Raises:
        ValueError: If one of them is not a string.
    """
    listed: list[Any] = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [prompts]
    for prompt in listed:
        if not isinstance(prompt, str):
            raise ValueError(f"{name} has {prompt!r:.100}; expected a string, or a sequence of strings")
    return listed
