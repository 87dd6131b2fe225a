"""The modules of the work are imported with few garbage collections."""

from __future__ import annotations

import gc

from causvid.harness.imports import importing


def test_garbage_collection_is_rare_during_imports_and_normal_afterwards() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        with importing():
            assert gc.get_threshold()[0] >= 10_000
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.set_threshold(*before)
