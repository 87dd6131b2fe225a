"""Text from outside: which of it UTF-8 can hold. Manifests, prompts and MLflow store UTF-8 and nothing else.

A ``str`` of Python can hold more than UTF-8: halves of surrogate pairs, which JSON spells ``"\\ud83d"``, and bytes of
another encoding in file names and arguments, which Python reads as U+DC80 to U+DCFF (PEP 383).
"""

from __future__ import annotations

NOT_UTF8 = "not_utf8"  # the code of a rejected row


def fault(text: str) -> str | None:
    """The reason why UTF-8 cannot hold ``text``, as a clause that follows the text's name; None when it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        origin = f"the byte 0x{code - 0xDC00:02X} of another encoding, or " if 0xDC80 <= code <= 0xDCFF else ""
        return f"holds U+{code:04X} as character {error.start + 1} ({origin}half of a surrogate pair): it is not UTF-8"
    return None


def require(text: str, name: str) -> None:
    """Refuse ``text``, which the user knows as ``name``, when UTF-8 cannot hold it.

    Raises:
        ValueError: Naming ``name``, the text, the character and the remedy.
    """
    if reason := fault(text):
        raise ValueError(f"{name} is {text!r}, which {reason}; write it in UTF-8")


def escaped(text: str) -> str:
    """``text`` with a backslash escape for every character that UTF-8 cannot hold. Other text stays as it is."""
    return text.encode(errors="backslashreplace").decode()


def decode(content: bytes, name: str) -> str:
    """``content``, which the user knows as ``name``, as text. A byte order mark is dropped.

    Raises:
        ValueError: When it is not UTF-8: naming ``name``, the first wrong byte, its line and the remedy.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object has no byte order mark; error.start counts within it.
        wrong, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is not UTF-8 text ({error.reason}: byte 0x{wrong:02X} in line {line}); save it as UTF-8"
        ) from error
