"""Prompts as a list: a bare string is one prompt, although Python takes it for a sequence of letters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


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
