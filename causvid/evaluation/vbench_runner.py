"""Run VBench in its environment: read a request from stdin, and write the results as JSON to the file in the argument.

The interpreter of VBench's environment runs this file. The file therefore imports only the standard library and, inside
functions, torch and VBench. Run the file with ``python -P``, because a module in this folder is also called vbench.

Request: {"dimensions": [name], "device": str, "threads": int, "videos": [{"path", "prompt"}]}.
Result: {"version": str, "scores": {name: float}, "skipped": {name: reason}}. The file of results is written again after
every dimension, so that no finished score is lost if the process is killed. VBench downloads missing weights, so that
the caller must check that all weights exist.
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

# File of ViCLIP's vocabulary. VBench downloads this file with wget during its import, although the package clip
# contains the file.
BPE = "bpe_simple_vocab_16e6.txt.gz"
NEEDS_BPE = ("overall_consistency", "temporal_style")
# AMT's checkpoint contains objects that are not tensors, but VBench 0.1.5 does not set weights_only=False. Only this
# dimension may load such objects, because loading them can execute code from the file.
LOADS_OBJECTS = ("motion_smoothness",)


def main(out: Path) -> None:
    """Score the dimensions of the request on stdin one after another, and write the results to ``out``."""
    request = json.load(sys.stdin)
    results: dict[str, Any] = {"version": version("vbench"), "scores": {}, "skipped": {}}
    for dimension in request["dimensions"]:
        try:
            results["scores"][dimension] = score(dimension, request)
        # VBench can fail in many ways. A failed dimension must not discard hours of work on the other dimensions.
        except Exception as error:
            results["skipped"][dimension] = f"VBench failed: {type(error).__name__}: {error}".splitlines()[0]
        temporary = out.with_name(f"{out.name}.tmp")
        temporary.write_text(json.dumps(results, allow_nan=False))
        os.replace(temporary, out)


def score(dimension: str, request: dict[str, Any]) -> float:
    """Return VBench's score of ``dimension`` over all videos.

    Raises:
        ValueError: VBench scored another number of videos, or the score is not finite.
    """
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
        # In several places, VBench does not disable gradients. The graph of a complete video would remain in memory.
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
