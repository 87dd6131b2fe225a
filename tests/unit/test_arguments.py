"""A string argument is one prompt, and an error names arguments that do not belong to one batch."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import causvid
from causvid import params
from causvid.data.stores.config import PackItem
from causvid.data.stores.prompt_store import PromptStore, write_prompts
from causvid.evaluation.judge import judge_videos
from causvid.generate import videos
from causvid.pipeline import CausVidPipeline
from causvid.runtime.shapes import VideoShape
from causvid.runtime.text import prompt_list
from causvid.wan.text_encoder import build_text_encoder, build_tokenizer, embed
from causvid.wan.transformer.wan import load_transformer
from causvid.wan.vae.vae import load_vae
from tests.unit.test_pipeline import TEXT, generators

PROMPTS = ["a red circle", "a blue cube"]
TEXT_CONFIG = {"d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 16, "num_layers": 1, "feed_forward_proj": "gated-gelu"}
STEPS: dict[str, Any] = {"shift": 3.0, "solver_steps": 4, "denoising_timesteps": (1000, 750, 500)}


@pytest.fixture(scope="module")
def pipelines(world: Path) -> dict[str, CausVidPipeline]:
    tokenizer = build_tokenizer(PROMPTS)
    encoder = build_text_encoder(TEXT_CONFIG, len(tokenizer), seed=0)
    made = {}
    for kind in ("student", "teacher"):
        model = load_transformer(world / kind).eval()
        parts = {"vae": load_vae(world / "vae"), "text_encoder": encoder, "tokenizer": tokenizer}
        made[kind] = CausVidPipeline(transformer=model, **parts, text_tokens=4, **STEPS)
        made[kind].set_progress_bar_config(disable=True)
    return made


# --- A string is one prompt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a red circle", "ab", "x", "", "円", "a blue cube, a red circle"])
def test_a_string_is_one_prompt(prompt: str, pipelines: dict[str, CausVidPipeline], video: VideoShape) -> None:
    pipeline = pipelines["student"]
    one = pipeline.embed(prompt)
    assert one.shape == (1, 4, 8)
    assert torch.equal(one, pipeline.embed([prompt]))
    assert torch.equal(one, pipeline.embed((prompt,)))
    assert pipeline(one, video, generators(1), few_steps=True).shape == (1, 13, 32, 32, 3)


def test_a_string_is_one_prompt_for_other_functions_too(
    world: Path, tmp_path: Path, pipelines: dict[str, CausVidPipeline], video: VideoShape
) -> None:
    store = PromptStore(world / "prompts")
    prompt = store.captions[0]
    assert torch.equal(store(prompt), store([prompt]))
    tokenizer, encoder = build_tokenizer("a red circle"), pipelines["student"].text_encoder
    assert tokenizer.get_vocab() == build_tokenizer(["a red circle"]).get_vocab()
    assert len(embed(encoder, pipelines["student"].tokenizer, "a red circle", 4)) == 1
    arguments: dict[str, Any] = {"captions": prompt, "evaluation": prompt, "negative": "", "tokens": 4}
    write_prompts(tmp_path / "prompts", {prompt: torch.ones(2, 8)}, **arguments)
    assert PromptStore(tmp_path / "prompts").captions == PromptStore(tmp_path / "prompts").evaluation == [prompt]
    made = videos.generate(pipelines["student"], "a red circle", tmp_path / "out", shape=video, seconds=None, seeds=[0])
    assert (made.videos, made.made, made.repeated) == (1, 1, 0)


def test_the_judge_refuses_another_number_of_captions_than_videos() -> None:
    clip, caption = np.zeros((3, 32, 32, 3), dtype=np.uint8), "a red circle moves right over a black background"
    assert judge_videos([clip], caption, []) == judge_videos([clip], [caption], [])
    with pytest.raises(ValueError, match="captions has 1 entries, videos 2; give one caption per video"):
        judge_videos([clip, clip], caption, [])


@pytest.mark.parametrize("prompts", [None, 3, [1], ["a", None], [["a"]], b"a red circle"])
def test_a_value_that_is_no_prompt_is_refused(prompts: Any, pipelines: dict[str, CausVidPipeline]) -> None:
    for use in (prompt_list, pipelines["student"].embed, build_tokenizer):
        with pytest.raises(ValueError, match="prompts has .*; expected a string, or a sequence of strings"):
            use(prompts)


def test_an_empty_list_of_prompts_is_refused(pipelines: dict[str, CausVidPipeline]) -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        pipelines["student"].embed([])


# --- Arguments of one batch -------------------------------------------------------------------------------------------

BATCHES: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], str]] = {
    "fewer generators": (lambda: (TEXT, generators(1, 2), None), "generators has 2 entries, prompt_embeds has 3 prompts"),
    "more generators": (lambda: (TEXT[:1], generators(1, 2), None), "generators has 2 entries, prompt_embeds has 1 prompts"),
    "no generator": (lambda: (TEXT, [], None), "generators has 0 entries"),
    "a bare generator": (lambda: (TEXT[:1], generators(1)[0], None), r"generators is <torch.*expected a sequence of torch.Generator, one per video: \[generator\]"),
    "seeds": (lambda: (TEXT[:1], [1], None), r"generators is \[1\]; expected a sequence of torch.Generator"),
    "a seed": (lambda: (TEXT[:1], 1, None), "generators is 1; expected"),
    "a string": (lambda: ("a red circle", generators(1), None), "prompt_embeds is 'a red circle'; expected embeddings, as the pipeline's embed"),
    "strings": (lambda: (["a red circle"], generators(1), None), "prompt_embeds is .*; expected embeddings"),
    "one embedding": (lambda: (TEXT[0], generators(1), None), r"prompt_embeds has shape \(4, 8\); expected \[B, L, 8\]"),
    "another width": (lambda: (TEXT[..., :5], generators(1, 2, 3), None), r"prompt_embeds has shape \(3, 4, 5\)"),
    "no prompts": (lambda: (TEXT[:0], [], None), "prompt_embeds has shape .*B and L at least 1"),
    "two negatives": (lambda: (TEXT, generators(1, 2, 3), TEXT[:2]), r"negative_embeds has shape \(2, 4, 8\); expected \[3, 4, 8\] .*\[1, 4, 8\] for all"),
    "a shorter negative": (lambda: (TEXT, generators(1, 2, 3), TEXT[:1, :2]), r"negative_embeds has shape \(1, 2, 8\)"),
    "a negative prompt": (lambda: (TEXT[:1], generators(1), "blurry"), "negative_embeds is 'blurry'; expected embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["student", "teacher"])
@pytest.mark.parametrize("few_steps", [True, False])
@pytest.mark.parametrize("name", BATCHES)
def test_arguments_of_different_batches_are_refused_by_name(
    name: str, few_steps: bool, kind: str, pipelines: dict[str, CausVidPipeline], video: VideoShape
) -> None:
    make, message = BATCHES[name]
    text, draws, negative = make()
    pipeline = pipelines[kind]
    how: dict[str, Any] = {"negative_embeds": negative, "guidance_scale": 2.0, "few_steps": few_steps}
    calls: list[Callable[[], Any]] = [lambda: pipeline(text, video, draws, **how)]
    if kind == "student":
        calls.append(lambda: next(pipeline.stream(text, video, draws, **how)))
        calls.append(lambda: pipeline.rollout(text, video, draws, 21, **how))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("1000", "denoising_timesteps is '1000'; expected a sequence of numbers"),
        ("1000,750,500", "denoising_timesteps is '1000,750,500'"),
        (1000, "denoising_timesteps is 1000; expected"),
        (["1000", "750"], r"denoising_timesteps is \['1000', '750'\]; it must start at 1000"),
        ([1000, 700], "700, which is not a state of a solver"),
    ],
)
def test_invalid_timesteps_are_refused(steps: Any, message: str, pipelines: dict[str, Any]) -> None:
    student = pipelines["student"]
    with pytest.raises(ValueError, match=message):
        CausVidPipeline(student.vae, student.transformer, **{**STEPS, "denoising_timesteps": steps})


# --- Sequences in params ----------------------------------------------------------------------------------------------


def sequence_fields() -> list[Any]:
    """Return every field with a sequence type in a params section or entry."""
    found = {}
    for module in pkgutil.walk_packages(causvid.__path__, "causvid."):
        if module.name.endswith("__main__"):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if dataclasses.is_dataclass(cls) and (cls is PackItem or (cls.__doc__ or "").startswith("Params")):
                for name, hint in typing.get_type_hints(cls).items():
                    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
                    if any((typing.get_origin(kind) or kind) in (tuple, list, Sequence) for kind in kinds):
                        found[f"{cls.__module__}.{cls.__name__}.{name}"] = (cls, name)
    known = {key.rpartition(".")[2] for key in found}
    assert known >= {"mixkit_captions", "vbench_dimensions", "denoising_timesteps", "timesteps", "betas"}
    return [pytest.param(*value, id=key) for key, value in sorted(found.items())]


@pytest.mark.parametrize("value", ["1000", "file.json", "object_class"])
@pytest.mark.parametrize(("cls", "field"), sequence_fields())
def test_a_string_in_a_field_for_a_sequence_is_refused(cls: type, field: str, value: str) -> None:
    """A string is not split into letters. Examples are mixkit_captions, vbench_dimensions and timesteps."""
    with pytest.raises(ValueError, match=rf"section.{field}.*: .*\(found '{value}'\)"):
        params.build(cls, {field: value}, name="section")
