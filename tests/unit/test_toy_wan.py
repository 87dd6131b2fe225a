"""The weights that ship: whole, small, and good enough that a prompt's video shows what it says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from causvid import params
from causvid.compute.device import Precision
from causvid.data.sources import toy_world
from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.judge import judge
from causvid.pipeline import CausVidPipeline, load_pipeline
from causvid.record import TeacherRecord, read_record, student_of_params
from causvid.runtime.shapes import VideoShape
from causvid.wan.text_encoder import embed, load_text_encoder
from causvid.wan.vae.vae import decode, encode, to_uint8, to_unit

FOLDER = Path("data/inputs/toy_wan")
LIMIT = 12_000_000  # bytes that may lie in git
TOKENS = 12  # of a prompt; the profile's
VIDEO = VideoShape(height=32, width=32, frames=33, fps=8)


@pytest.fixture(scope="module")
def teacher() -> CausVidPipeline:
    schedule = params.section(Path("profiles/toy-wan.yaml"), "schedule", ScheduleConfig)
    return load_pipeline(FOLDER / "transformer", FOLDER / "vae", read_record(FOLDER / "transformer"), schedule)


def embeddings(prompts: list[str]) -> torch.Tensor:
    """Of prompts of one length."""
    encoder, tokenizer = load_text_encoder(FOLDER / "text_encoder", FOLDER / "tokenizer", torch.float32)
    found = embed(encoder, tokenizer, prompts, TOKENS)
    return torch.stack([torch.nn.functional.pad(each, (0, 0, 0, TOKENS - len(each))) for each in found])


def test_they_are_the_files_that_the_card_names() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    weights = sorted(FOLDER.glob("*/*.safetensors"))
    assert [path.parent.name for path in weights] == ["text_encoder", "transformer", "vae"]
    for path in weights:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < LIMIT


def test_f5_their_record_is_that_of_the_profile_that_trained_them() -> None:
    """A model whose size, prompts or VAE are not these is another one."""
    profile, transformer = Path("profiles/toy-wan.yaml"), FOLDER / "transformer"
    record = read_record(transformer)
    assert isinstance(record, TeacherRecord)
    assert record.video == params.section(profile, "video", VideoShape) == VIDEO
    assert record.schedule.shift == params.section(profile, "schedule.shift", float)
    assert record.text_tokens == params.section(profile, "model.text_tokens", int) == TOKENS
    assert record.precision == params.section(profile, "model.precision", Precision)
    assert record.frames_per_block is None
    assert record.fits(FOLDER / "vae")


def test_f5_the_laptop_profile_starts_from_what_they_were_trained_for() -> None:
    laptop = Path("profiles/laptop.yaml")
    assert params.section(laptop, "train_teacher.init.folder", Path) == FOLDER / "transformer"
    values = student_of_params(laptop).values()
    del values["model.frames_per_block"]  # the student's
    assert read_record(FOLDER / "transformer").differences(values) == []


def test_the_autoencoder_gives_clips_back(teacher: CausVidPipeline) -> None:
    for index, caption in enumerate(Path("data/inputs/toy_world/tuning.txt").read_text("utf-8").splitlines()[:4]):
        clip = torch.from_numpy(toy_world.clip_frames(caption, index, video=VIDEO, seed=7))
        with torch.no_grad():
            back = to_uint8(decode(teacher.vae, encode(teacher.vae, to_unit(clip)[None])))[0]
        error = (back.float() - clip.float()).square().mean()
        assert 10 * torch.log10(255.0**2 / error) > 27  # dB; 30 on average over clips that went through H.264


def test_the_teacher_shows_what_prompts_it_never_saw_say(teacher: CausVidPipeline) -> None:
    prompts = Path("data/inputs/toy_world/tuning.txt").read_text("utf-8").splitlines()[:8]
    noise = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    frames = teacher(embeddings(prompts), VIDEO, noise, embeddings([""]), 2.0, few_steps=False)
    verdicts = [judge(video.numpy(), prompt) for video, prompt in zip(frames, prompts, strict=True)]
    assert sum(v is not None and v.colour and v.background and v.motion for v in verdicts) >= 7
