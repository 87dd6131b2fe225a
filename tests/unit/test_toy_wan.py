"""The shipped weights have the expected checksums, sizes, training records and video quality."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from causvid import params
from causvid.compute.precision import Precision
from causvid.data.sources import toy_world
from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.judge import judge
from causvid.pipeline import CausVidPipeline, load_pipeline
from causvid.record import TeacherRecord, read_record, student_of_params
from causvid.runtime.shapes import VideoShape
from causvid.wan.text_encoder import embed, load_text_encoder
from causvid.wan.vae.vae import decode, encode, to_uint8, to_unit

FOLDER = Path("data/inputs/toy_wan")
LIMIT = 20_000_000  # largest number of bytes that git may contain
TOKENS = 12  # length of a prompt in tokens, in the profile
VIDEO = VideoShape(height=32, width=32, frames=33, fps=8)


def load(name: str) -> CausVidPipeline:
    schedule = params.section(Path("profiles/toy-wan.yaml"), "schedule", ScheduleConfig)
    return load_pipeline(FOLDER / name, FOLDER / "vae", read_record(FOLDER / name), schedule)


@pytest.fixture(scope="module")
def teacher() -> CausVidPipeline:
    return load("transformer")


def embeddings(prompts: list[str]) -> torch.Tensor:
    """Return prompt embeddings [B, L, D], padded to the same length L."""
    encoder, tokenizer = load_text_encoder(FOLDER / "text_encoder", FOLDER / "tokenizer", torch.float32)
    found = embed(encoder, tokenizer, prompts, TOKENS)
    return torch.stack([torch.nn.functional.pad(each, (0, 0, 0, TOKENS - len(each))) for each in found])


def test_the_weights_have_the_checksums_in_the_model_card() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    weights = sorted(FOLDER.glob("*/*.safetensors"))
    assert [path.parent.name for path in weights] == ["causal_transformer", "text_encoder", "transformer", "vae"]
    for path in weights:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < LIMIT


@pytest.mark.parametrize(("name", "frames_per_block"), [("transformer", None), ("causal_transformer", 3)])
def test_the_record_has_the_values_of_the_profile_that_trained_the_weights(
    name: str, frames_per_block: int | None
) -> None:
    """The training record has the clip size, the prompt length, the precision and the VAE of the profile."""
    profile = Path("profiles/toy-wan.yaml")
    record = read_record(FOLDER / name)
    assert isinstance(record, TeacherRecord)
    assert record.video == params.section(profile, "video", VideoShape) == VIDEO
    assert record.schedule.shift == params.section(profile, "schedule.shift", float)
    assert record.text_tokens == params.section(profile, "model.text_tokens", int) == TOKENS
    assert record.precision == params.section(profile, "model.precision", Precision)
    assert record.frames_per_block == frames_per_block
    assert record.fits(FOLDER / "vae")


def test_the_laptop_profile_agrees_with_the_record_of_the_weights() -> None:
    laptop = Path("profiles/laptop.yaml")
    values = student_of_params(laptop).values()
    for stage, name in (("train_causal_teacher", "causal_transformer"), ("train_teacher", "transformer")):
        assert params.section(laptop, f"{stage}.init.folder", Path) == FOLDER / name
        assert read_record(FOLDER / name).differences(values) == []
        values.pop("model.frames_per_block", None)  # the teacher has no blocks


def test_the_autoencoder_reconstructs_clips(teacher: CausVidPipeline) -> None:
    for index, caption in enumerate(Path("data/inputs/toy_world/tuning.txt").read_text("utf-8").splitlines()[:4]):
        clip = torch.from_numpy(toy_world.clip_frames(caption, index, video=VIDEO, seed=7))
        with torch.no_grad():
            back = to_uint8(decode(teacher.vae, encode(teacher.vae, to_unit(clip)[None])))[0]
        error = (back.float() - clip.float()).square().mean()
        # the limit is 27 dB; clips encoded as H.264 have a mean of 30 dB
        assert 10 * torch.log10(255.0**2 / error) > 27


@pytest.mark.parametrize("name", ["transformer", "causal_transformer"])
def test_a_teacher_generates_videos_of_prompts_that_were_not_in_training(name: str) -> None:
    teacher = load(name)
    prompts = Path("data/inputs/toy_world/tuning.txt").read_text("utf-8").splitlines()[:8]
    noise = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    frames = teacher(embeddings(prompts), VIDEO, noise, embeddings([""]), 2.0, few_steps=False)
    verdicts = [judge(video.numpy(), prompt) for video, prompt in zip(frames, prompts, strict=True)]
    assert sum(v is not None and v.colour and v.background and v.motion for v in verdicts) >= 7
