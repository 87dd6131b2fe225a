"""The exception that turns a source video into a row of rejected.jsonl."""

from __future__ import annotations


class Rejection(Exception):
    """Raised if a source video cannot become a clip.

    Args:
        code: A short, stable identifier of the kind of fault.
        reason: A clause that explains the fault, for rejected.jsonl.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
