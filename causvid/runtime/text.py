"""Check text from outside: UTF-8 must be able to encode it, because manifests, prompts and MLflow store UTF-8.

Python's ``str`` can contain characters that UTF-8 cannot encode: halves of surrogate pairs, which JSON writes as
``"\\ud83d"``, and bytes of another encoding in file names and arguments, which Python reads as U+DC80 to U+DCFF
(PEP 383).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NOT_UTF8 = "not_utf8"  # code of a row that is rejected because of its text


def fault(text: str) -> str | None:
    """Explain why UTF-8 cannot encode ``text``, in a clause whose subject is the text. Returns None if UTF-8 can."""
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
        ValueError: UTF-8 cannot encode the text. The message has the name, the text, the character and the remedy.
    """
    if reason := fault(text):
        raise ValueError(f"{name} is {text!r}, which {reason}; give it in UTF-8")


def escaped(text: str) -> str:
    """Return ``text`` with a backslash escape for every character that UTF-8 cannot encode; the rest is unchanged."""
    return text.encode(errors="backslashreplace").decode()


def undecodable(content: bytes) -> str | None:
    """Explain why ``content`` is not UTF-8, in a clause whose subject is the content. Returns None if it is UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"is not a UTF-8 text ({error.reason}: byte 0x{content[error.start]:02X} in line {line})"
    return None


def decode(content: bytes, name: str) -> str:
    """Decode ``content``, which error messages call ``name``, from UTF-8 with or without a byte order mark.

    Raises:
        ValueError: ``content`` is not UTF-8. The message has the name, the first wrong byte, its line and the remedy.
    """
    if reason := undecodable(content):
        raise ValueError(f"{name} {reason}; save it as UTF-8")
    return content.decode("utf-8-sig")


def prompt_list(prompts: str | Iterable[str], name: str = "prompts") -> list[str]:
    """Return ``prompts`` as a list.

    Args:
        prompts: One prompt, or any number of them.
        name: Name of the argument, for error messages.

    Raises:
        ValueError: A prompt is not a string.
    """
    listed: list[Any] = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [prompts]
    for prompt in listed:
        if not isinstance(prompt, str):
            raise ValueError(f"{name} has {prompt!r:.100}; expected a string, or a sequence of strings")
    return listed
