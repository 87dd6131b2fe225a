"""The command causvid reads each checkpoint format, writes videos, continues runs, and refuses wrong arguments."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from causvid.compute.precision import Precision
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.diffusion.schedule import FlowSchedule, ScheduleConfig
from causvid.generate import videos
from causvid.generate.command import app
from causvid.generate.folder import Video
from causvid.generate.formats import load_checkpoint
from causvid.generate.videos import CRF, generate
from causvid.interop.original_checkpoint import export_checkpoint, import_checkpoint
from causvid.interop.original_wan import load_components
from causvid.pipeline import CausVidPipeline
from causvid.record import (
    FILE,
    SETTINGS,
    CacheRule,
    Normalisation,
    StudentRecord,
    TeacherRecord,
    read_vae_config,
    write_record,
)
from causvid.runtime.shapes import VideoShape
from causvid.wan.text_encoder import build_text_encoder, build_tokenizer, save_text_encoder
from causvid.wan.transformer.wan import as_causal, build_transformer
from causvid.wan.vae.vae import load_vae
from tests.unit.interop.wan_files import PROMPTS, TEXT, VAE, write_wan_folder
from tests.unit.peak_memory import LONG, STATUS, VIDEO_BYTES, growth

PROFILES = Path(__file__).parents[2] / "profiles"
CLIP = 13  # length of a clip in frames
STUDENT = StudentRecord(
    schedule=ScheduleConfig(shift=3.0, solver_steps=4, denoising_timesteps=(1000, 750, 500), context_timestep=0.0),
    video=VideoShape(height=32, width=32, frames=CLIP, fps=8),
    text_tokens=8,
    frames_per_block=2,
    precision=Precision.FLOAT32,
    latents=None,
    cache=CacheRule(),
)


@dataclass(frozen=True)
class Toys:
    """A student in each of the three checkpoint formats, and the params file of the student."""

    root: Path

    @property
    def checkpoints(self) -> dict[str, Path]:
        return {
            "ours": self.root / "checkpoints" / "dmd",
            "released": self.root / "released" / "model.pt",
            "diffusers": self.root / "diffusers",
        }

    def run(self, checkpoint: str, out: Path, *options: str, command: str = "generate") -> Result:
        params = ["--params", str(self.root / "params.yaml")]
        arguments = [command, "--checkpoint", str(self.checkpoints[checkpoint]), "--out", str(out), *params, *options]
        return CliRunner().invoke(app, arguments)

    def make(self, checkpoint: str, out: Path, *options: str, command: str = "generate") -> dict[str, Any]:
        done = self.run(checkpoint, out, *options, command=command)
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads((out / "videos.json").read_text()) if command == "generate" else {}
        return found


def write_params(path: Path, transformer: dict[str, Any], **changes: Any) -> None:
    values = YAML(typ="safe").load(PROFILES / "smoke.yaml")
    values["video"] = {"height": 32, "width": 32, "frames": CLIP, "fps": 8}
    values["schedule"] |= {"shift": 3.0, "solver_steps": 4, "denoising_timesteps": [1000, 750, 500]}
    values["model"] |= {"vae": VAE, "transformer": transformer, "text_encoder": TEXT, "text_tokens": 8}
    values["model"] |= {"frames_per_block": 2, "precision": "float32", **changes}
    YAML(typ="safe").dump(values, path)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, transformer_config: dict[str, Any]) -> Toys:
    toys = Toys(tmp_path_factory.mktemp("toys"))
    config = {**transformer_config, "text_dim": TEXT["d_model"]}
    write_params(toys.root / "params.yaml", config)
    wan = toys.root / "released" / "Wan2.1-T2V-1.3B"
    wan.mkdir(parents=True)
    write_wan_folder(wan)
    parts = load_components(wan, vae_config=VAE, text_config=TEXT, dtype=torch.float32)
    student = as_causal(build_transformer(config, seed=1), frames_per_block=2)
    student.save_pretrained(toys.checkpoints["ours"])
    parts.vae.save_pretrained(toys.root / "checkpoints" / "vae")
    save_text_encoder(parts.text_encoder, parts.tokenizer, toys.root / "checkpoints" / "text_encoder")
    latents = Normalisation.of(read_vae_config(toys.root / "checkpoints" / "vae"))
    write_record(replace(STUDENT, latents=latents), toys.checkpoints["ours"])
    export_checkpoint(toys.checkpoints["ours"], toys.checkpoints["released"])
    toys.make("ours", toys.checkpoints["diffusers"], command="export")
    return toys


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


def named(prompt: str, seed: int = 0) -> str:
    return Video(prompt=prompt, seed=seed).name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.mp4"))}


# torch warns about a slower kernel for norm_q
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_format_gives_the_same_videos(toys: Toys, prompts: Path, tmp_path: Path, precision: str) -> None:
    found = {}
    for name in toys.checkpoints:
        index = toys.make(name, tmp_path / name, "--prompts", str(prompts), "--precision", precision)
        found[name] = contents(tmp_path / name), index
        assert index["videos"] == {named(prompt): {"prompt": prompt, "seed": 0} for prompt in PROMPTS}
        assert found[name][0].keys() == index["videos"].keys()
    assert found["ours"] == found["released"] == found["diffusers"]
    first, second = (read_frames(tmp_path / "ours" / file) for file in sorted(found["ours"][0]))
    assert first.shape == second.shape == (CLIP, 32, 32, 3)
    assert not np.array_equal(first, second)


def test_a_video_is_equal_to_that_of_the_pipeline(toys: Toys, tmp_path: Path) -> None:
    """The command uses the prompt embeddings, the noise of the seed, and the few steps of the student."""
    toys.make("ours", tmp_path / "out", "--prompt", PROMPTS[0], "--seed", "3")
    checkpoint = toys.checkpoints["ours"]
    pipeline = load_checkpoint(checkpoint, params=toys.root / "params.yaml", wan=None, precision=Precision.FLOAT32)
    noise = [torch.Generator().manual_seed(3)]
    expected = pipeline(pipeline.embed(PROMPTS[:1]), pipeline.video, noise, few_steps=True)[0].numpy()
    write_video(tmp_path / "expected.mp4", expected, fps=8, crf=CRF)
    assert (tmp_path / "out" / named(PROMPTS[0], 3)).read_bytes() == (tmp_path / "expected.mp4").read_bytes()
    assert pipeline.video == VideoShape(height=32, width=32, frames=CLIP, fps=8)
    other = pipeline.embed(PROMPTS[1:])
    assert not torch.equal(pipeline.embed(PROMPTS[:1]), other)
    assert set(SETTINGS) <= set(pipeline.config)


# --- bidirectional students, lengths and sizes of videos --------------------------------------------------------------


def test_a_bidirectional_student_generates_clips_but_no_rollouts(
    toys: Toys, transformer_config: dict[str, Any], tmp_path: Path
) -> None:
    write_params(tmp_path / "params.yaml", {**transformer_config, "text_dim": 16}, frames_per_block=None)
    options = ["--prompt", PROMPTS[0], "--params", str(tmp_path / "params.yaml")]
    toys.make("released", tmp_path / "out", *options)
    toys.make("released", tmp_path / "causal", "--prompt", PROMPTS[0])
    whole, blocks = (read_frames(tmp_path / name / named(PROMPTS[0])) for name in ("out", "causal"))
    assert whole.shape == blocks.shape
    assert not np.array_equal(whole, blocks)
    long = toys.run("released", tmp_path / "long", *options, "--seconds", "4")
    assert long.exit_code == 1
    assert "--seconds is 4.0, 32 frames at 8 fps; a bidirectional student generates at most 13 frames" in long.output
    mixed = toys.run("released", tmp_path / "causal", *options)
    assert "holds videos made with frames_per_block 2, not None" in mixed.output


@pytest.mark.parametrize(("seconds", "frames"), [("0.5", 4), ("1.625", CLIP), ("4", 32)])
def test_a_length_in_seconds(toys: Toys, tmp_path: Path, seconds: str, frames: int) -> None:
    toys.make("ours", tmp_path, "--prompt", PROMPTS[0], "--seconds", seconds)
    assert len(read_frames(tmp_path / named(PROMPTS[0]))) == frames


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "0.05"])
def test_an_invalid_length_is_refused(toys: Toys, tmp_path: Path, seconds: str) -> None:
    done = toys.run("ours", tmp_path / "out", "--prompt", PROMPTS[0], "--seconds", seconds)
    assert (done.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert "at 8 fps it must be at least 0.125, one frame" in done.output


def test_options_for_size_frame_rate_and_seeds(toys: Toys, tmp_path: Path) -> None:
    options = [
        "--prompt",
        PROMPTS[0],
        "--height",
        "48",
        "--width",
        "16",
        "--fps",
        "4",
        "--seed",
        "0",
        "--seed",
        "7",
        "--seed",
        "0",
    ]
    index = toys.make("diffusers", tmp_path, *options)
    assert index["settings"] | {"height": 48, "width": 16, "fps": 4} == index["settings"]
    one, two = (read_frames(tmp_path / named(PROMPTS[0], seed)) for seed in (0, 7))
    assert one.shape == two.shape == (CLIP, 48, 16, 3)
    assert not np.array_equal(one, two)
    assert len(index["videos"]) == 2
    for size in ("height", "width", "fps"):
        none = toys.run("ours", tmp_path / "none", "--prompt", PROMPTS[0], f"--{size}", "0")
        assert f"video.{size} is 0" in none.output
    for height, said in (("36", "the VAE needs a multiple of 8"), ("40", "the transformer needs a multiple of 16")):
        odd = toys.run("ours", tmp_path / "odd", "--prompt", PROMPTS[0], "--height", height)
        assert f"video.height is {height}; {said}" in odd.output


# --- continued runs ---------------------------------------------------------------------------------------------------


def test_an_interrupted_run_is_continued(toys: Toys, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    toys.make("ours", out, "--prompts", str(prompts))
    whole, index = contents(out), (out / "videos.json").read_bytes()
    (out / named(PROMPTS[1])).write_bytes(b"")  # a power failure may leave an empty file
    kept = (out / named(PROMPTS[0])).stat().st_mtime_ns
    assert "2 videos, 1 of them new" in toys.run("ours", out, "--prompts", str(prompts)).output
    assert (contents(out), (out / "videos.json").read_bytes()) == (whole, index)
    assert (out / named(PROMPTS[0])).stat().st_mtime_ns == kept
    prompts.write_text("\n".join([*PROMPTS, "a blue ball"]), encoding="utf-8")
    assert "3 videos, 1 of them new" in toys.run("ours", out, "--prompts", str(prompts)).output


def test_a_video_that_the_map_does_not_list_is_generated_again(toys: Toys, tmp_path: Path) -> None:
    toys.make("ours", tmp_path, "--prompt", PROMPTS[0])
    (tmp_path / named(PROMPTS[1])).write_bytes(b"from a run that was killed before it wrote the map")
    (tmp_path / "more.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    toys.make("ours", tmp_path, "--prompts", str(tmp_path / "more.txt"))
    assert len(read_frames(tmp_path / named(PROMPTS[1]))) == CLIP


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", PROMPTS[0], "--fps", "4"], "holds videos made with fps 8, not 4; choose another --out"),
        (["--prompt", PROMPTS[0], "--precision", "bfloat16"], "holds videos made with weights"),
    ],
)
def test_a_folder_with_other_settings_is_refused(toys: Toys, tmp_path: Path, options: list[str], said: str) -> None:
    toys.make("ours", tmp_path, "--prompt", PROMPTS[0])
    before = contents(tmp_path)
    done = toys.run("ours", tmp_path, *options)
    assert (done.exit_code, contents(tmp_path)) == (1, before)
    assert said in done.output


def test_a_folder_of_another_model_or_with_a_damaged_map_is_refused(toys: Toys, tmp_path: Path) -> None:
    toys.make("ours", tmp_path, "--prompt", PROMPTS[0])
    path = tmp_path / "videos.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "settings": {**index["settings"], "weights": "another"}}))
    assert "made with weights another, not" in toys.run("ours", tmp_path, "--prompt", PROMPTS[0]).output
    row = index["videos"][named(PROMPTS[0])]
    older = {"00000-seed0.mp4": {**row, "index": 0}}
    rows = [{named(PROMPTS[0]): {"seed": 0}}, {"mine.mp4": row}, {named(PROMPTS[1]): row}, older]
    for damaged in ("{", "[]", *(json.dumps({**index, "videos": each}) for each in rows)):
        path.write_text(damaged)
        assert "videos.json is not a map of videos" in toys.run("ours", tmp_path, "--prompt", PROMPTS[0]).output


def test_a_folder_that_another_process_uses_is_refused(toys: Toys, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        done = toys.run("ours", tmp_path, "--prompt", PROMPTS[0])
    assert done.exit_code == 1
    assert f"another process is writing into {tmp_path}" in done.output


# --- long videos ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak from /proc")
def test_a_long_video_is_written_in_constant_memory(toys: Toys, world: Path, tmp_path: Path) -> None:
    """The peak memory grows little from 64 to 1600 frames.

    The growth is less than half of the bytes of the 1600 frames.
    """
    pipeline = CausVidPipeline.from_pretrained(toys.checkpoints["diffusers"])
    pipeline.register_modules(vae=load_vae(world / "vae"))  # the VAE of the toy world is faster
    pipeline.save_pretrained(tmp_path / "toy")
    assert growth("generate", tmp_path / "toy", tmp_path) < VIDEO_BYTES / 2
    assert len(read_frames(tmp_path / "long" / named("x"))) == LONG


@pytest.mark.parametrize(("frames", "fps"), [(14, 8), (22, 4), (30, 30), (101, 16)])
def test_a_rollout_of_any_length_and_rate_is_equal_to_that_of_the_pipeline(
    toys: Toys, tmp_path: Path, frames: int, fps: int
) -> None:
    """For some of these lengths, the last window has a single frame."""
    options = ["--prompt", PROMPTS[0], "--fps", str(fps), "--seconds", repr(frames / fps)]
    toys.make("diffusers", tmp_path / "out", *options)
    pipeline = CausVidPipeline.from_pretrained(toys.checkpoints["diffusers"])
    text, noise = pipeline.embed(PROMPTS[:1]), [torch.Generator().manual_seed(0)]
    shape = VideoShape(height=32, width=32, frames=CLIP, fps=fps)
    expected = torch.cat(list(pipeline.rollout(text, shape, noise, frames, few_steps=True)), dim=1)[0]
    assert len(expected) == frames
    write_video(tmp_path / "expected.mp4", expected.numpy(), fps=fps, crf=CRF)
    assert (tmp_path / "out" / named(PROMPTS[0])).read_bytes() == (tmp_path / "expected.mp4").read_bytes()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device"), MemoryError])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_stops_during_a_video_is_continued(
    toys: Toys, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, after: int
) -> None:
    """The run stops in the second video. Only the first video is kept, and the second run writes the same files."""
    long, whole = ["--prompts", str(prompts), "--seconds", "4"], videos.make_video

    def stopping(pipeline: Any, video: Video, *rest: Any) -> Iterator[Any]:
        chunks = whole(pipeline, video, *rest)
        second = video.prompt == PROMPTS[1]
        yield from islice(chunks, after) if second else chunks
        if second:
            raise stop

    toys.make("diffusers", tmp_path / "whole", *long)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(videos, "make_video", stopping)
        assert toys.run("diffusers", out, *long).exit_code != 0
    assert {path.name for path in out.iterdir()} - {".lock"} == {named(PROMPTS[0]), "videos.json"}
    assert list(json.loads((out / "videos.json").read_text())["videos"]) == [named(PROMPTS[0])]
    (out / f".{named(PROMPTS[1])}.tmp-1").write_bytes(b"of a killed process")
    assert "2 videos, 1 of them new" in toys.run("diffusers", out, *long).output
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("seconds", ["0.5", "1.625", "4"])
def test_a_video_is_flushed_to_disk_before_the_map_lists_it(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    synced: set[int] = set()
    write_json, fsync = videos.write_json, os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def checking(path: Path, value: dict[str, Any]) -> None:
        assert {(path.parent / name).stat().st_ino for name in value["videos"]} <= synced
        write_json(path, value)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(videos, "write_json", checking)
    index = toys.make("diffusers", tmp_path, "--prompt", "x", "--seed", "0", "--seed", "1", "--seconds", seconds)
    assert len(index["videos"]) == 2


# --- prompts and seeds ------------------------------------------------------------------------------------------------


def shown(out: Path) -> dict[tuple[str, int], bytes]:
    """Return the bytes of the video of each prompt and seed, as listed in the map."""
    rows = json.loads((out / "videos.json").read_text())["videos"]
    return {(row["prompt"], row["seed"]): (out / name).read_bytes() for name, row in rows.items()}


def write_lines(path: Path, *lines: str) -> list[str]:
    path.write_text("\n".join(lines), encoding="utf-8")
    return ["--prompts", str(path)]


@pytest.mark.parametrize(
    "lines",
    [
        ("a blue cube", "a red ball moves left", "a red ball moves left and a blue cube moves left"),
        ("  ein größerer Würfel 🎈 ", "a  red\tball", "a red ball", "赤いボール"),
        ("&lt;ball&gt;", "cafe\u0301", "caf\u00e9", "a", "a"),
    ],
)
@pytest.mark.parametrize("seconds", ["1.625", "3"])
def test_a_video_does_not_depend_on_the_line_or_the_other_prompts(
    toys: Toys, tmp_path: Path, lines: tuple[str, ...], seconds: str
) -> None:
    options = ["--seconds", seconds, "--seed", "0", "--seed", "4294967295"]
    toys.make("diffusers", tmp_path / "all", *write_lines(tmp_path / "a", *lines), *options)
    together = shown(tmp_path / "all")
    assert together.keys() == {(line.strip(), seed) for line in lines for seed in (0, 4294967295)}
    toys.make("diffusers", tmp_path / "turned", *write_lines(tmp_path / "b", *lines[::-1]), *options)
    assert shown(tmp_path / "turned") == together
    for prompt, seed in together:
        alone = tmp_path / "alone"
        toys.make("diffusers", alone, "--prompt", prompt, "--seed", str(seed), "--seconds", seconds)
        assert shown(alone)[prompt, seed] == together[prompt, seed]


@pytest.mark.parametrize("seed", [0, 12345, 2**31, 2**32 - 1])
def test_the_seed_determines_the_noise_for_all_prompts(toys: Toys, tmp_path: Path, seed: int) -> None:
    """The noise comes from a generator with the given seed, as in diffusers."""
    pipeline, given = CausVidPipeline.from_pretrained(toys.checkpoints["diffusers"]), []
    pipeline.transformer.register_forward_pre_hook(lambda _, args, __: given.append(args[0]), with_kwargs=True)
    generate(pipeline, ["a", "b c d"], tmp_path, shape=pipeline.video, seconds=None, seeds=[seed])
    first, second = given[0], given[len(given) // 2]
    expected = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(seed))[:, :, :2]
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 7, -(2**63), 10**30])
def test_a_seed_outside_of_32_bits_is_refused(toys: Toys, tmp_path: Path, seed: int) -> None:
    done = toys.run("diffusers", tmp_path / "out", "--prompt", "x", "--seed", "3", "--seed", str(seed))
    assert (done.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert f"--seed is {seed}; choose one from 0 to 4294967295" in done.output


@pytest.mark.parametrize("prompt", ["\udcff", "a ball \ud800", "ü\udc80ü"])
def test_a_prompt_that_utf8_cannot_hold_is_refused(toys: Toys, tmp_path: Path, prompt: str) -> None:
    pipeline = CausVidPipeline.from_pretrained(toys.checkpoints["diffusers"])
    with pytest.raises(ValueError, match=r"--prompt is '.*\\ud.*', which holds .*UTF-8 cannot hold it"):
        generate(pipeline, ["x", prompt], tmp_path / "out", shape=pipeline.video, seconds=None, seeds=[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "seeds", "names"),
    [
        (["a", "a", "b"], ["0"], ["a-seed0", "b-seed0"]),
        (["b", "a", "b", " a ", "a"], ["1", "1"], ["a-seed1", "b-seed1"]),
        (["a"] * 5, ["2", "3", "2"], ["a-seed2", "a-seed3"]),
    ],
)
def test_repeated_prompts_and_seeds_are_used_once(
    toys: Toys, tmp_path: Path, lines: list[str], seeds: list[str], names: list[str]
) -> None:
    options = [*write_lines(tmp_path / "prompts", *lines), *(text for seed in seeds for text in ("--seed", seed))]
    done = toys.run("diffusers", tmp_path / "out", *options)
    assert list(contents(tmp_path / "out")) == [f"{name}.mp4" for name in names]
    repeated = len(lines) - len({line.strip() for line in lines})
    assert f"2 videos, 2 of them new; {tmp_path / 'out' / 'videos.json'} lists" in done.output
    assert f"{repeated} lines repeat a prompt and were ignored." in done.output


@pytest.mark.parametrize(
    ("before", "after"), [("ab", "xab"), ("ab", "xacb"), ("abc", "cba"), ("ab", "b"), ("a", "x"), ("aA", "Ab")]
)
def test_a_folder_can_be_extended_in_any_order(toys: Toys, tmp_path: Path, before: str, after: str) -> None:
    """Existing files keep their names and contents, and a new prompt never uses the name of an existing file."""
    out = tmp_path / "out"
    toys.make("diffusers", out, *write_lines(tmp_path / "prompts", *before))
    kept = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.mp4")}
    index = toys.make("diffusers", out, *write_lines(tmp_path / "prompts", *after))
    assert {row["prompt"] for row in index["videos"].values()} == {*before, *after}
    assert {
        name: (stat.st_mtime_ns, path.read_bytes()) for name in kept for path in [out / name] for stat in [path.stat()]
    } == kept
    toys.make("diffusers", tmp_path / "fresh", *write_lines(tmp_path / "prompts", *sorted({*before, *after})))
    assert contents(out) == contents(tmp_path / "fresh")
    again = toys.run("diffusers", out, *write_lines(tmp_path / "prompts", *before)).output
    assert f"{len(before)} videos, 0 of them new" in again
    assert "frames per second" not in again


def test_further_prompts_are_added_to_the_same_folder(toys: Toys, tmp_path: Path) -> None:
    first = toys.run("ours", tmp_path, "--prompt", PROMPTS[0])
    assert "1 videos, 1 of them new" in first.output
    assert "one video, including the warm-up" in first.output
    more = toys.run("ours", tmp_path, "--prompt", f" {PROMPTS[0]} ", "--prompt", PROMPTS[1], "--prompt", "x")
    assert "3 videos, 2 of them new" in more.output
    assert re.search(r"first frame after [\d.e-]+ s, [\d.e+]+ frames per second \(.*after a warm-up", more.output)
    assert list(contents(tmp_path)) == sorted([named(PROMPTS[0]), named(PROMPTS[1]), named("x")])


@pytest.mark.parametrize("checkpoint", ["ours", "released", "diffusers"])
def test_frames_are_enlarged_without_interpolation(toys: Toys, tmp_path: Path, checkpoint: str) -> None:
    """A clip and a rollout are enlarged. The frames before the encoding have equal pixels in each square."""
    given: list[Any] = []
    write = videos.write_video

    def noting(path: Path, chunks: Any, **options: Any) -> None:
        noted = [chunk.copy() for chunk in chunks]
        given.append(np.concatenate(noted))
        assert all(len(chunk) == 1 for chunk in noted) or noted[0].shape[1] == 32
        write(path, iter(noted), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "write_video", noting)
        for scale in ("1", "3"):
            toys.make(checkpoint, tmp_path / scale, "--prompt", "x", "--seconds", "2", "--scale", scale)
    small, large = given
    assert np.array_equal(large, small.repeat(3, axis=1).repeat(3, axis=2))
    assert read_frames(tmp_path / "3" / named("x")).shape == (16, 96, 96, 3)
    mixed = toys.run(checkpoint, tmp_path / "3", "--prompt", "x", "--seconds", "2")
    assert "holds videos made with scale 3, not 1" in mixed.output


def test_words_without_an_embedding_are_named_once(toys: Toys, tmp_path: Path) -> None:
    """The vocabulary of a text encoder that this project builds are the words of its prompts."""
    known = toys.root / "known"
    shutil.copytree(toys.root / "checkpoints", known)
    shutil.rmtree(known / "text_encoder")
    words = build_tokenizer(["a red circle moves up"])
    save_text_encoder(build_text_encoder(TEXT, len(words), seed=0), words, known / "text_encoder")
    options = ["--prompt", "a purple circle, a purple dog moves up.", "--prompt", "a Red circle moves up"]
    done = command("generate", known / "dmd", *options, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "the text encoder knows none of these words and cannot tell them apart: purple, dog, Red\n" in done.output
    quiet = command("generate", known / "dmd", "--prompt", "a circle moves up.", "--out", str(tmp_path / "out"))
    assert quiet.exit_code == 0, quiet.output
    assert "text encoder" not in quiet.output


def test_the_map_states_what_determines_a_video(toys: Toys, tmp_path: Path) -> None:
    index = toys.make("diffusers", tmp_path, "--prompt", "x")
    assert index["rule"] == videos.RULE
    assert "prompt and the seed determine a video" in index["rule"]
    assert index["settings"]["noise"] == "torch.Generator().manual_seed(seed)"


@pytest.mark.parametrize(
    ("noise", "said"),
    [(None, "is None, not torch.Generator"), ("by line", "is by line, not"), ({"of": 1}, "is {'of': 1}, not")],
)
def test_a_folder_with_another_rule_for_the_noise_is_refused(toys: Toys, tmp_path: Path, noise: Any, said: str) -> None:
    """The map of an older version has no entry for the noise, which is None."""
    index = toys.make("diffusers", tmp_path, "--prompt", "x")
    older = {**index["settings"], "noise": noise}
    if noise is None:
        del older["noise"], index["rule"]
    (tmp_path / "videos.json").write_text(json.dumps({**index, "settings": older}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = toys.run("diffusers", tmp_path, "--prompt", "x")
    assert done.exit_code == 1
    assert f"{tmp_path} holds videos of another version, whose noise does not depend only on the seed" in done.output
    assert said in done.output
    assert "choose another --out" in done.output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "texts",
    [
        ["a red ball moves left", "a", "a blue cube a blue cube a blue cube a blue cube"],
        ["a", "a", "a red ball"],
        ["unknown words 赤い", "a blue cube", "ball"],
    ],
)
def test_a_video_does_not_depend_on_the_lengths_of_other_prompts_in_the_batch(toys: Toys, texts: list[str]) -> None:
    """Equal batches give equal bytes. In different batches, values differ by at most one of 255 levels."""
    pipeline = CausVidPipeline.from_pretrained(toys.checkpoints["diffusers"])

    def made(order: Sequence[int]) -> torch.Tensor:
        noise = [torch.Generator().manual_seed(k) for k in order]
        frames: torch.Tensor = pipeline(
            pipeline.embed([texts[k] for k in order]), pipeline.video, noise, few_steps=True
        )
        return frames

    together = made((0, 1, 2))
    assert torch.equal(together, made((0, 1, 2)))
    for order in ([0], [1], [2], [2, 0], [1, 2, 0]):
        assert (made(order).int() - together[order].int()).abs().max() <= 1


# --- errors of the user -----------------------------------------------------------------------------------------------


def test_an_invalid_checkpoint_is_refused(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text("{}")
    for checkpoint, said in (
        (tmp_path / "nothing", "it must be a folder with config.json (trained by this project), a model.pt of"),
        (tmp_path / "model.pt", "needs one Wan2.1 folder beside it (found: none); name it with --wan-folder"),
        (tmp_path / "alone", f"needs {tmp_path / 'vae'} beside it, which the stage train_vae writes"),
    ):
        options = ["--prompt", "x", "--out", str(tmp_path / "out"), "--params", str(toys.root / "params.yaml")]
        done = CliRunner().invoke(app, ["generate", "--checkpoint", str(checkpoint), *options])
        assert done.exit_code == 1
        assert said in done.output
    assert not (tmp_path / "out").exists()


def test_params_of_another_model_are_refused(toys: Toys, tmp_path: Path) -> None:
    """The shapes of the weights do not determine the number of heads. A wrong number of heads would generate noise."""
    options = ["--prompt", "x", "--params", str(PROFILES / "laptop.yaml")]
    done = toys.run("released", tmp_path / "out", *options)
    assert done.exit_code == 1
    assert "laptop.yaml: model.transformer." in done.output


def test_a_teacher_is_refused(toys: Toys, transformer_config: dict[str, Any], tmp_path: Path) -> None:
    """A teacher would generate noise in three steps, so a teacher from any source is refused."""
    model = build_transformer({**transformer_config, "text_dim": TEXT["d_model"]}, seed=1)
    teacher, elsewhere = toys.root / "checkpoints" / "teacher", toys.root / "hub" / "transformer"
    for folder in (teacher, elsewhere):
        model.save_pretrained(folder)
    common = {"video": STUDENT.video, "text_tokens": 8, "precision": Precision.FLOAT32, "latents": None}
    write_record(TeacherRecord(schedule=FlowSchedule(shift=3.0), frames_per_block=None, **common), teacher)
    for part in ("vae", "text_encoder/text_encoder", "text_encoder/tokenizer"):
        shutil.copytree(toys.root / "checkpoints" / part, elsewhere.parent / Path(part).name)
    options = ["--prompt", "x", "--out", str(tmp_path / "out"), "--params", str(toys.root / "params.yaml")]
    done = CliRunner().invoke(app, ["generate", "--checkpoint", str(teacher), *options])
    assert f"--checkpoint is {teacher}, a teacher, which needs many steps" in done.output
    assert f"use --checkpoint {toys.checkpoints['ours']}" in done.output
    lonely = tmp_path / "checkpoints"
    shutil.copytree(toys.root / "checkpoints", lonely, ignore=shutil.ignore_patterns("dmd"))
    (lonely / "ode_init").mkdir()
    (lonely / "ode_init" / FILE).write_text("{")  # a damaged record is no student
    done = CliRunner().invoke(app, ["generate", "--checkpoint", str(lonely / "teacher"), *options])
    assert "train a student with 'dvc repro train_dmd', which writes data/checkpoints/dmd" in done.output
    done = CliRunner().invoke(app, ["generate", "--checkpoint", str(elsewhere), *options])
    assert "has frames_per_block None (None = bidirectional), but " in done.output
    assert "use the params file with which the student was trained" in done.output
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    done = CliRunner().invoke(app, ["generate", "--checkpoint", str(plain), *options])
    assert "holds a WanPipeline whose model_index.json lacks shift, " in done.output
    assert "give a few-step student" in done.output
    (plain / "model_index.json").write_text("{")
    assert (
        "plain/model_index.json is damaged"
        in CliRunner().invoke(app, ["generate", "--checkpoint", str(plain), *options]).output
    )


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_truncated_or_missing_weights_are_refused(toys: Toys, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(toys.checkpoints["diffusers"], folder)
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:5000])
    options = ["--prompt", "x", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["generate", "--checkpoint", str(folder), *options])
    assert (done.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert str(folder) in done.output
    assert "cannot be loaded" in done.output
    weights.unlink()
    assert (
        f"{part} holds no weights; expected"
        in CliRunner().invoke(app, ["generate", "--checkpoint", str(folder), *options]).output
    )


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tokenizer/tokenizer.json", "{", "tokenizer cannot be loaded as a tokenizer: "),
        ("tokenizer/tokenizer.json", "{}", "tokenizer cannot be loaded as a tokenizer: "),
        ("text_encoder/config.json", '{"d_model": 12}', "text_encoder cannot be loaded as a text encoder: "),
        ("transformer/config.json", "{}", "transformer/config.json names the class None"),
    ],
)
def test_an_invalid_file_of_a_pipeline_is_refused(toys: Toys, tmp_path: Path, file: str, text: str, said: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(toys.checkpoints["diffusers"], folder)
    (folder / file).write_text(text)
    done = CliRunner().invoke(
        app, ["generate", "--checkpoint", str(folder), "--prompt", "x", "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 1
    assert said in done.output


def test_a_run_with_a_full_disk_can_be_continued(
    toys: Toys, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(videos, "write_video", full)
        done = toys.run("ours", tmp_path, "--prompts", str(prompts))
    assert done.exit_code == 1
    assert f"--out is {tmp_path}, which cannot be written into (" in done.output
    assert "2 videos, 2 of them new" in toys.run("ours", tmp_path, "--prompts", str(prompts)).output


def test_parts_that_do_not_fit_are_refused(toys: Toys, transformer_config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(toys.checkpoints["diffusers"], folder)
    as_causal(build_transformer(transformer_config, seed=1), 2).save_pretrained(folder / "transformer")
    done = CliRunner().invoke(
        app, ["generate", "--checkpoint", str(folder), "--prompt", "x", "--out", str(tmp_path / "o")]
    )
    assert (
        "the text_dim of the transformer is 8, but the d_model of the text_encoder is 16; use models that were trained together"
        in done.output
    )


def test_an_output_folder_that_cannot_be_created_is_refused(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"--out is {out}, which cannot be written into (" in toys.run("ours", out, "--prompt", "x").output
    out = tmp_path / "file" / "below"
    assert f"--out is {out}, which cannot be written (" in toys.run("ours", out, command="export").output


def test_one_source_of_prompts_is_needed(toys: Toys, prompts: Path, tmp_path: Path) -> None:
    for options in ([], ["--prompt", "x", "--prompts", str(prompts)], ["--prompt", " "]):
        assert (
            "give either --prompts or at least one --prompt; a prompt must not be empty"
            in toys.run("ours", tmp_path / "out", *options).output
        )
    done = toys.run("ours", tmp_path / "out", "--prompts", str(tmp_path / "none.txt"))
    assert "--prompts is" in done.output
    assert "does not exist" in done.output


def test_an_export_overwrites_nothing(toys: Toys) -> None:
    assert (
        "which exists; choose another folder"
        in toys.run("ours", toys.checkpoints["diffusers"], command="export").output
    )


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("causvid")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "generate" in done.stdout


# --- sources of schedule and sizes ------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a new folder without params.yaml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(name: str, checkpoint: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [name, "--checkpoint", str(checkpoint), *options])


def test_a_trained_folder_needs_no_params_file(toys: Toys, elsewhere: Path) -> None:
    for name, options in (("generate", ["--prompt", PROMPTS[0]]), ("export", [])):
        done = command(name, toys.checkpoints["ours"], "--out", name, *options)
        assert done.exit_code == 0, done.output
        assert "params" not in done.output
    toys.make("ours", elsewhere / "with", "--prompt", PROMPTS[0])
    assert contents(elsewhere / "generate") == contents(elsewhere / "with")
    exported = json.loads((elsewhere / "export" / "model_index.json").read_text())
    assert exported == json.loads((toys.checkpoints["diffusers"] / "model_index.json").read_text())


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_params_yaml_of_another_profile_is_ignored(toys: Toys, elsewhere: Path, profile: str) -> None:
    shutil.copy(PROFILES / f"{profile}.yaml", elsewhere / "params.yaml")
    done = command("export", toys.checkpoints["ours"], "--out", "made")
    assert done.exit_code == 0, done.output
    index = json.loads((elsewhere / "made" / "model_index.json").read_text())
    assert {name: index[name] for name in SETTINGS} == {
        "shift": 3.0, "solver_steps": 4, "denoising_timesteps": [1000.0, 750.0, 500.0], "context_timestep": 0.0,
        "height": 32, "width": 32, "frames": CLIP, "fps": 8, "text_tokens": 8, "precision": "float32",
    }  # fmt: skip


@pytest.mark.parametrize("checkpoint", ["ours", "diffusers"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shift": 5.0, "denoising_timesteps": [1000]}, "schedule.shift 3, not 5"),
        ({"solver_steps": 8}, "schedule.solver_steps 4, not 8"),
        ({"denoising_timesteps": [1000, 500]}, "schedule.denoising_timesteps [1000, 750, 500], not [1000, 500]"),
        ({"context_timestep": 20}, "schedule.context_timestep 0, not 20"),
        ({"width": 48}, "video.width 32, not 48"),
        ({"frames": 21}, "video.frames 13, not 21"),
        ({"fps": 16}, "video.fps 8, not 16"),
        ({"text_tokens": 12}, "model.text_tokens 8, not 12"),
        ({"frames_per_block": 4}, "model.frames_per_block 2, not 4"),
        ({"frames_per_block": None}, "model.frames_per_block 2, not null"),
        ({"precision": "bfloat16"}, "model.precision float32, not bfloat16"),
    ],
)
def test_params_that_differ_from_the_values_of_the_weights_are_refused(
    toys: Toys, tmp_path: Path, checkpoint: str, changes: dict[str, Any], said: str
) -> None:
    values = YAML(typ="safe").load(toys.root / "params.yaml")
    for name, value in changes.items():
        section = next(values[key] for key in ("schedule", "video", "model") if name in values[key])
        section[name] = value
    YAML(typ="safe").dump(values, tmp_path / "other.yaml")
    done = toys.run(checkpoint, tmp_path / "out", "--params", str(tmp_path / "other.yaml"), command="export")
    assert done.exit_code == 1
    assert f"was trained for {said}" in done.output
    assert "omit --params" in done.output
    assert not (tmp_path / "out").exists()


def test_weights_from_elsewhere_use_the_params_file_and_print_its_values(toys: Toys, elsewhere: Path) -> None:
    done = command("export", toys.checkpoints["released"], "--out", "made")
    assert "params.yaml does not exist" in done.output
    shutil.copy(toys.root / "params.yaml", elsewhere / "params.yaml")
    done = command("export", toys.checkpoints["released"], "--out", "made")
    assert done.exit_code == 0, done.output
    assert "model.pt has no training record; values of params.yaml: schedule.shift 3, " in done.output
    for value in ("denoising_timesteps [1000, 750, 500]", "video.height 32", "text_tokens 8", "frames_per_block 2"):
        assert value in done.output


@pytest.mark.parametrize("tokens", [0, -1])
def test_params_with_zero_text_tokens_are_refused(toys: Toys, tmp_path: Path, tokens: int) -> None:
    values = YAML(typ="safe").load(toys.root / "params.yaml")
    values["model"]["text_tokens"] = tokens
    YAML(typ="safe").dump(values, tmp_path / "params.yaml")
    done = toys.run("released", tmp_path / "out", "--params", str(tmp_path / "params.yaml"), command="export")
    assert (done.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert f"model.text_tokens is {tokens}; a prompt needs 1 token at least" in done.output


def test_a_transformer_without_a_record_is_accepted_only_from_elsewhere(toys: Toys, tmp_path: Path) -> None:
    """A transformer without a record beside models of a stage is refused, unless the transformer was imported."""
    ours, hub = tmp_path / "checkpoints", tmp_path / "hub"
    shutil.copytree(toys.root / "checkpoints", ours)
    student = ours / "dmd"
    (student / FILE).unlink()
    for name in ("generate", "export"):
        options = ["--params", str(toys.root / "params.yaml"), "--out", str(tmp_path / "out")]
        done = command(name, student, *options, *(["--prompt", "x"] if name == "generate" else []))
        assert done.exit_code == 1
        assert f"{student} has no {FILE}" in done.output
        assert "dvc repro train_dmd" in done.output
        assert not (tmp_path / "out").exists()
    shutil.copytree(toys.checkpoints["diffusers"], hub)
    import_checkpoint(toys.checkpoints["released"], ours / "imported", num_attention_heads=2, frames_per_block=2)
    for folder in (hub / "transformer", ours / "imported"):
        done = command(
            "generate", folder, "--prompt", PROMPTS[0], "--params", str(toys.root / "params.yaml"),
            "--out", str(tmp_path / folder.name),
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert f"{folder} has no training record; values of " in done.output
    assert contents(tmp_path / "transformer") == contents(tmp_path / "imported")


def test_a_student_beside_another_vae_is_refused(toys: Toys, tmp_path: Path) -> None:
    shutil.copytree(toys.root / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "vae" / "config.json"
    config = json.loads(path.read_text())
    for name in ("latents_mean", "latents_std"):
        numbers = list(config[name])
        path.write_text(json.dumps({**config, name: [*numbers[:-1], numbers[-1] + 0.5]}))
        done = command("generate", tmp_path / "checkpoints" / "dmd", "--prompt", "x", "--out", str(tmp_path / "out"))
        assert done.exit_code == 1
        assert "dmd was trained on latents of another VAE than " in done.output
        assert "latents_mean and latents_std differ" in done.output
    path.write_text(json.dumps(config))
    assert toys.run("ours", tmp_path / "out", "--prompt", "x").exit_code == 0


# --- links to checkpoints ---------------------------------------------------------------------------------------------


def linked(kind: str, source: Path, place: Path) -> Path:
    """Create a link of the given ``kind`` to ``source`` in the folder ``place``, and return the path of the link."""
    place.mkdir()
    if kind == "hub cache":
        blob = place.parent / "blobs" / "0123"
        blob.parent.mkdir()
        shutil.copy(source, blob)
        (place / source.name).symlink_to(f"../blobs/{blob.name}")
    elif kind == "link to a link":
        (place / "next").symlink_to(source)
        (place / source.name).symlink_to("next")
    else:
        (place / source.name).symlink_to(source)
    return place / source.name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["hub cache", "link to a link", "link"])
def test_a_link_to_a_checkpoint_uses_its_own_name_and_neighbours(
    toys: Toys, tmp_path: Path, kind: str, suffix: str
) -> None:
    file = tmp_path / "files" / f"model{suffix}"
    export_checkpoint(toys.checkpoints["ours"], file)
    link = linked(kind, file, tmp_path / "snapshot")
    wan = toys.checkpoints["released"].parent / "Wan2.1-T2V-1.3B"
    (link.parent / "Wan2.1-toy").symlink_to(wan)
    params = ["--params", str(toys.root / "params.yaml")]
    done = command("generate", link, "--prompt", PROMPTS[0], "--out", str(tmp_path / "out"), *params)
    assert done.exit_code == 0, done.output
    toys.make("released", tmp_path / "plain", "--prompt", PROMPTS[0])
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_neighbours_of_a_link_are_used_before_neighbours_of_its_target(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "student"
    link.symlink_to(toys.checkpoints["ours"])
    again = tmp_path / "again"
    again.symlink_to("here/student")
    for folder in (link, again):
        done = command("generate", folder, "--prompt", PROMPTS[0], "--out", str(tmp_path / "out"))
        assert done.exit_code == 0, done.output
    (tmp_path / "here" / "text_encoder").symlink_to(toys.root / "checkpoints" / "text_encoder")
    shutil.copytree(toys.root / "checkpoints" / "vae", tmp_path / "here" / "vae")
    config = tmp_path / "here" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latents_std": [3.0] * 4}))
    done = command("generate", link, "--prompt", PROMPTS[0], "--out", str(tmp_path / "out"))
    assert f"another VAE than {tmp_path / 'here' / 'vae'}" in done.output


def test_folders_whose_files_are_links_are_loaded(toys: Toys, tmp_path: Path) -> None:
    """DVC and the hub store files under their checksums and create links to these files."""
    for name, root in (("ours", toys.root / "checkpoints"), ("diffusers", toys.checkpoints["diffusers"])):
        copy = tmp_path / f"linked-{name}"
        for number, file in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
            blob, link = tmp_path / "cache" / f"{name}-{number:04d}", copy / file.relative_to(root)
            blob.parent.mkdir(exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(blob)
        checkpoint = copy / "dmd" if name == "ours" else copy
        done = command("generate", checkpoint, "--prompt", PROMPTS[0], "--out", str(tmp_path / name))
        assert done.exit_code == 0, done.output
    assert contents(tmp_path / "ours") == contents(tmp_path / "diffusers")


def test_the_current_folder_can_be_the_checkpoint(toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toys.checkpoints["ours"])
    done = command("generate", Path(), "--prompt", PROMPTS[0], "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("target", ["../blobs/0123", "dmd", "loop"])
def test_a_broken_link_is_refused_by_name(tmp_path: Path, target: str) -> None:
    link = tmp_path / "loop"
    link.symlink_to(target)
    done = command("export", link, "--out", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert f"--checkpoint is {link}, a link to {target}, which does not exist" in done.output
