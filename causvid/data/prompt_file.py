"""Read text files of prompts."""

from __future__ import annotations

import re
from pathlib import Path

from causvid.runtime import text


def read_prompt_file(path: Path, name: str) -> list[str]:
    """Read a text file with one prompt per line. Blank lines are ignored; LF, CRLF and CR end a line.

    Args:
        path: The text file.
        name: Name of the setting that holds ``path``, for error messages.

    Raises:
        ValueError: The file does not exist, has no prompts, or is not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{name} is {path}, which does not exist; name a text file with one prompt per line")
    lines = re.split(r"\r\n?|\n", text.decode(path.read_bytes(), f"{name} is {path}, which"))
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{name} is {path}, which holds no prompts; write one per line")
    return prompts
