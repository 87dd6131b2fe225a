"""Provide toy models for all tests. Toy models have the real classes and formats, but tiny sizes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from causvid.compute.parallel import Compute
from causvid.compute.precision import Precision
from causvid.data.generated import write_clips
from causvid.data.stores.latent_store import Record, write_store
from causvid.data.stores.prompt_store import write_prompts
from causvid.data.videos import manifest
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.record import CacheRule, Normalisation, StudentRecord, TeacherRecord, write_record
from causvid.runtime.shapes import VideoShape
from causvid.wan.transformer.wan import as_causal, build_transformer
from causvid.wan.vae.vae import build_vae

# Ray clusters of tests listen on every interface, so each cluster needs a token. Ray reads these variables at import.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="of these tests")

# A background job of a shell ignores Ctrl-C, and so do its child processes. Tests that interrupt processes need the
# default behaviour, also if the tests run in such a job.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# There is no deadline, because a slow machine is not a failure. The examples are always the same, so that a failure can
# be reproduced.
settings.register_profile("causvid", deadline=None, derandomize=True)
settings.load_profile("causvid")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the file test_flow.py first, and run the other files that need the smoke run last.

    One of two workers executes the smoke run, which takes minutes. Meanwhile, the other worker runs other tests.
    """
    asking = {item.path for item in items if "smoke" in getattr(item, "fixturenames", ())}
    items.sort(
        key=lambda item: 0 if item.path.name == "test_flow.py" and item.path in asking else 1 + (item.path in asking)
    )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Use one thread, because bit-exact comparisons need one thread and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def transformer_config() -> dict[str, Any]:
    """Return the config of a Wan transformer with two layers, 4 latent channels and width 32."""
    return {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }


@pytest.fixture(scope="session")
def vae_config() -> dict[str, Any]:
    """Return the config of a Wan VAE with 4 latent channels, temporal stride 4 and spatial stride 8."""
    return {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 8,
    }


ONE_WORKER = Compute(
    workers=1,
    gpus_per_worker=0,
    gradient_checkpointing="none",
    shard_weights=False,
    gradient_accumulation_steps=1,
    compile=False,
    save_in_background=False,
)
VIDEO = VideoShape(height=32, width=32, frames=13, fps=8)  # 4 latent frames of 4 x 4 latent pixels
SCHEDULE = ScheduleConfig(shift=3.0, solver_steps=4, denoising_timesteps=(1000, 750, 500), context_timestep=0.0)
TRAINED: dict[str, Any] = {  # fields that the training records of all toy models share
    "video": VIDEO,
    "text_tokens": 4,
    "precision": Precision.FLOAT32,
    "latents": Normalisation(mean=(0.0,) * 4, std=(1.0,) * 4),
}
TEACHER = TeacherRecord(schedule=FlowSchedule(shift=3.0), frames_per_block=None, **TRAINED)
CAUSAL_TEACHER = TeacherRecord(schedule=FlowSchedule(shift=3.0), frames_per_block=2, **TRAINED)
STUDENT = StudentRecord(schedule=SCHEDULE, frames_per_block=2, cache=CacheRule(), **TRAINED)
CAPTIONS = [
    f"a {colour} {shape} moves {way}"
    for colour in ("red", "blue")
    for shape in ("ball", "cube")
    for way in ("left", "up")
]


@pytest.fixture(scope="session")
def video() -> VideoShape:
    """Return the size of every toy clip."""
    return VIDEO


@pytest.fixture(scope="session")
def schedule() -> ScheduleConfig:
    """Return a schedule of four solver steps. The student uses the timesteps of three solver steps."""
    return SCHEDULE


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory, transformer_config: dict[str, Any], vae_config: dict[str, Any]
) -> Path:
    """Return a folder with the results of earlier stages. Tests must not change the folder.

    The folder contains clips, vae, prompts, lmdb/latents and lmdb/pairs. The folder also contains teacher,
    causal_teacher and student, each with its training record.
    """
    root = tmp_path_factory.mktemp("world")
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    ramps = (normal(len(CAPTIONS), VIDEO.frames, 1, 1, 3).cumsum(dim=1) * 20 + 128).clamp(0, 255).to(torch.uint8)
    rows = write_clips(root / "clips", CAPTIONS, ramps.expand(-1, -1, 32, 32, -1), VIDEO, crf=10)
    manifest.write_rows(root / "clips" / manifest.NAME, rows)
    build_vae(vae_config, seed=0).save_pretrained(root / "vae")
    embeddings = {prompt: normal(3, 8) for prompt in ["", *CAPTIONS]}
    write_prompts(root / "prompts", embeddings, captions=CAPTIONS, evaluation=CAPTIONS[::-1], negative="", tokens=4)
    teacher = build_transformer(transformer_config, seed=0)
    teacher.save_pretrained(root / "teacher")
    causal = as_causal(build_transformer(transformer_config, seed=1), frames_per_block=2)
    for name in ("student", "causal_teacher"):
        causal.save_pretrained(root / name)
    for name, record in (("teacher", TEACHER), ("causal_teacher", CAUSAL_TEACHER), ("student", STUDENT)):
        write_record(record, root / name)
    clips = [Record(normal(4, 4, 4, 4), caption) for caption in CAPTIONS]
    write_store(clips, root / "lmdb" / "latents", timesteps=None, per_transaction=8)
    pairs = [Record(normal(4, 4, 4, 4, 4), caption) for caption in CAPTIONS]
    write_store(pairs, root / "lmdb" / "pairs", timesteps=SCHEDULE.stored_timesteps(), per_transaction=8)
    return root
