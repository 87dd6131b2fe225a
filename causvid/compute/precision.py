"""The precision of matrix products. This module imports no torch, so that params are read without torch."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Precision of matrix products (params entry ``model.precision``)."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """Return the torch dtype with the name of this precision."""
        import torch

        return {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}[self]
