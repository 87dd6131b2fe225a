"""VBench in its own environment: a subprocess with JSON in and out, because its pins cannot share ours.

A dimension is scored by the real package or not at all: without its weights it is skipped, with the files it wants.
Source of files and settings: VBench 0.1.5, whose own download links are partly dead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from causvid.evaluation import vbench_runner
from causvid.params import PathRule

RUNNER = Path(vbench_runner.__file__)

_CLIP_B = "clip_model/ViT-B-32.pt"  # the TorchScript archive that OpenAI publishes, not a state dict
_CLIP_L = "clip_model/ViT-L-14.pt"
_VICLIP = "ViCLIP/ViClip-InternVid-10M-FLT.pth"
_DINO = "dino_model/dino_vitbase16_pretrain.pth"
_DINO_CODE = "dino_model/facebookresearch_dino_main"
# What each dimension reads below evaluate.vbench_weights (VBench's cache folder).
WEIGHTS: dict[str, tuple[str, ...]] = {
    "temporal_flickering": (),
    "subject_consistency": (_DINO, *(f"{_DINO_CODE}/{name}.py" for name in ("hubconf", "vision_transformer", "utils"))),
    "background_consistency": (_CLIP_B,),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": (_CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
    "overall_consistency": (_VICLIP,),
    "temporal_style": (_VICLIP,),
}
# They read labels or boxes that only VBench's own prompts come with.
NEEDS_OWN_PROMPTS = (
    "appearance_style",
    "color",
    "human_action",
    "multiple_objects",
    "object_class",
    "scene",
    "spatial_relationship",
)
# VBench asks torch.hub for DINO's weights even when it is told where they are.
ALSO_AT = {_DINO: "torch_hub/hub/checkpoints/dino_vitbase16_pretrain.pth"}
START_SECONDS = 600.0
SECONDS_PER_VIDEO = 900.0  # and dimension; the slowest one takes about 340 for 81 frames of 480p on one CPU thread


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Params section ``evaluate``.

    feature_vae: folder of the VAE whose encoder gives the Frechet distance its features; vbench_python: the interpreter
    of VBench's environment; vbench_weights: the folder VBench calls its cache; vbench_dimensions: names of dimensions
    to score.
    """

    feature_vae: Path
    # Without an environment, the scores of VBench are "not measured". Its lock file defines it.
    vbench_python: Annotated[Path, PathRule(may_be_missing=True, counted_by=Path("requirements/vbench.txt"))]
    vbench_weights: Annotated[Path, PathRule(may_be_missing=True)]
    vbench_dimensions: tuple[str, ...]

    def __post_init__(self) -> None:
        known = {*WEIGHTS, *NEEDS_OWN_PROMPTS}
        for name in self.vbench_dimensions:
            if name not in known:
                raise ValueError(f"evaluate.vbench_dimensions has {name!r}; VBench's are {', '.join(sorted(known))}")


@contextmanager
def scoring(
    folder: Path, rows: Sequence[Mapping[str, Any]], config: EvaluateConfig, *, device: str, log: Path
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Score the listed videos of ``folder`` beside what the body does; yields the function that waits for the result.

    Which is {"version": str or None, "scores": {dimension: float}, "skipped": {dimension: reason}}; every dimension of
    ``config`` stands in one of the last two. What VBench prints goes into ``log``; it does not outlive the body.
    """
    skipped = {name: reason for name in config.vbench_dimensions if (reason := why_not(name, config))}
    wanted = [name for name in config.vbench_dimensions if name not in skipped]
    if not wanted:
        yield lambda: {"version": None, "scores": {}, "skipped": skipped}
        return
    videos = [{"path": str((folder / row["path"]).absolute()), "prompt": row["caption"]} for row in rows]
    request = {"dimensions": wanted, "device": device, "threads": os.cpu_count() or 1, "videos": videos}
    limit = START_SECONDS + SECONDS_PER_VIDEO * len(wanted) * len(videos)
    with tempfile.TemporaryDirectory() as scratch:
        cache, out = Path(scratch) / "cache", Path(scratch) / "out.json"
        _link_weights(config.vbench_weights, wanted, cache)
        with _running(config.vbench_python, request, cache, out, log, limit) as trouble:

            def result() -> dict[str, Any]:
                why = trouble()
                found = json.loads(out.read_text()) if out.is_file() else {"version": None, "scores": {}, "skipped": {}}
                failed = {name: why for name in wanted if name not in {*found["scores"], *found["skipped"]}}
                return {**found, "skipped": skipped | found["skipped"] | failed}

            yield result


def why_not(dimension: str, config: EvaluateConfig) -> str | None:
    """Why ``dimension`` cannot be scored here, with what it wants; None when it can."""
    if not config.vbench_python.is_file():
        return "evaluate.vbench_python does not exist: run 'make vbench-env', then this stage with --force"
    if dimension in NEEDS_OWN_PROMPTS:
        return "needs the labels that come with VBench's own prompts"
    missing = [name for name in WEIGHTS[dimension] if not (config.vbench_weights / name).is_file()]
    return f"wants {', '.join(missing)} in evaluate.vbench_weights" if missing else None


def _link_weights(weights: Path, dimensions: Sequence[str], cache: Path) -> None:
    """A cache folder of links for one run: VBench writes beside its weights, and the user's folder is an input."""
    cache.mkdir()
    for name in {name for dimension in dimensions for name in WEIGHTS[dimension]}:
        for place in {name, ALSO_AT.get(name, name)}:
            link = cache / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((weights / name).resolve())


@contextmanager
def _running(
    python: Path, request: Mapping[str, Any], cache: Path, out: Path, log: Path, seconds: float
) -> Iterator[Callable[[], str]]:
    """The runner at work on ``request``; yields the function that waits for its end, ``seconds`` from here on at most,

    and says in words why ``out`` may be incomplete.
    """
    settings = {
        "VBENCH_CACHE_DIR": str(cache),
        "TORCH_HOME": str(cache / "torch_hub"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(request["threads"]),
    }
    end = time.monotonic() + seconds
    with tempfile.TemporaryFile() as asked, log.open("wb") as stream:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        # A session of its own: its helpers can be killed with it.
        process = subprocess.Popen(
            [str(python), "-P", str(RUNNER), str(out)],
            stdin=asked,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **settings},
            start_new_session=True,
        )

        def trouble() -> str:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(process)
                return f"VBench was stopped after {seconds:.0f} s"
            return f"VBench's interpreter ended with code {process.returncode}: {_last_line(log)}"

        try:
            yield trouble
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
