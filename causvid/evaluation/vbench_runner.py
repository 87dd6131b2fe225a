"""Runs VBench inside its own environment: a request on stdin, results as JSON into the file named by the argument.

The other interpreter executes this file, so it imports the standard library and, late, VBench and torch; nothing of
this project. It must be started with ``python -P``: beside it lies a module that is called vbench, too.

Request: {"dimensions": [name], "device": str, "threads": int, "videos": [{"path", "prompt"}]}.
Result: {"version": str, "scores": {name: float}, "skipped": {name: reason}}, rewritten after every dimension so that a
process that is killed leaves what it has finished. Every weight file has to be there: VBench downloads what is missing.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

BPE = "bpe_simple_vocab_16e6.txt.gz"  # ViCLIP's vocabulary; VBench runs wget for it at import, though clip ships it
NEEDS_BPE = ("overall_consistency", "temporal_style")
# AMT's checkpoint holds more than tensors, and the 0.1.5 release does not say so to torch. Only for this one: such a
# load runs code from the file.
LOADS_OBJECTS = ("motion_smoothness",)


def main(out: Path) -> None:
    """Score every dimension of the request on stdin, one after the other, and write ``out``."""
    request = json.load(sys.stdin)
    found: dict[str, Any] = {"version": version("vbench"), "scores": {}, "skipped": {}}
    for dimension in request["dimensions"]:
        try:
            found["scores"][dimension] = score(dimension, request)
        # Foreign code with many ways to fail: one dimension's failure must not cost the hours the others take.
        except Exception as error:
            found["skipped"][dimension] = f"VBench failed: {type(error).__name__}: {error}".splitlines()[0]
        temporary = out.with_name(f"{out.name}.tmp")
        temporary.write_text(json.dumps(found, allow_nan=False))
        os.replace(temporary, out)


def score(dimension: str, request: dict[str, Any]) -> float:
    """VBench's aggregate of ``dimension`` over the videos. Raises ValueError for a number that is none."""
    import torch

    torch.set_num_threads(request["threads"])
    if dimension in NEEDS_BPE:
        _place_bpe()
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1" if dimension in LOADS_OBJECTS else "0"
    utils = importlib.import_module("vbench.utils")
    compute = getattr(importlib.import_module(f"vbench.{dimension}"), f"compute_{dimension}")
    submodules = utils.init_submodules([dimension], local=True)[dimension]
    videos = [
        {"prompt_en": video["prompt"], "dimension": [dimension], "video_list": [video["path"]]}
        for video in request["videos"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "info.json"
        info.write_text(json.dumps(videos))
        # VBench forgets this in several places, and then holds the graph of a whole video.
        with torch.no_grad():
            value, rows = compute(str(info), torch.device(request["device"]), submodules)
    if len(rows) != len(videos):
        raise ValueError(f"it scored {len(rows)} of {len(videos)} videos")
    if not math.isfinite(value):
        raise ValueError(f"its score is {value}")
    return float(value)


def _place_bpe() -> None:
    spec = importlib.util.find_spec("clip")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    target = Path(os.environ["VBENCH_CACHE_DIR"]) / "ViCLIP" / BPE
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(spec.submodule_search_locations[0]) / BPE, target)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    _die_with_parent()
    main(Path(sys.argv[1]))
