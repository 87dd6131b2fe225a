"""Check that the sections of a params file fit together: frames, strides, blocks, timesteps and batch sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from causvid import params as params_file
from causvid.data.stores.config import require_tokens
from causvid.harness.inputs import path_problems
from causvid.methods.dmd.config import Inputs
from causvid.profile import PATHS, Profile
from causvid.runtime.shapes import BlockLayout
from causvid.wan.formats.configs import mismatches, missing_keys, stride_problems, token_shape


def read_profile(params: Path) -> Profile:
    """Read and check a params file.

    Raises:
        ValueError: Keys or values are wrong, or sections do not fit together. The message contains all problems and
            the remedies.
    """
    values = params_file.read(params)
    try:
        return checked(values)
    except ValueError as error:
        raise ValueError(f"{params}: {params_file.with_lines(error, params)}") from error


def checked(values: Mapping[str, Any]) -> Profile:
    """Build a profile from the content of a params file. Raises ValueError with all problems if there are any."""
    profile = Profile.of(values)
    if found := [*path_problems(values, PATHS), *problems(profile)]:
        raise ValueError("; ".join(found))
    return profile


def problems(profile: Profile) -> Iterator[str]:
    """Yield a sentence with the remedy for each pair of sections that do not fit together."""
    model, sample = profile.model, profile.sample
    if missing := [*missing_keys(vae=model.vae, transformer=model.transformer, text_encoder=model.text_encoder)]:
        yield from missing
        return  # the other rules need these values
    try:
        latent = token_shape(model.vae, model.transformer, profile.video)
        BlockLayout(frames=latent.frames, frames_per_block=model.frames_per_block or latent.frames)
    except ValueError as error:
        yield str(error)
    try:
        require_tokens(model.text_tokens)
    except ValueError as error:
        yield str(error)
    for it in mismatches(model.vae, model.transformer, model.text_encoder):
        yield (
            f"model.{it.section}.{it.key} is {it.value}; it must be model.{it.other_section}.{it.other_key}, {it.other}"
        )
    yield from stride_problems(model.vae)
    for name, count in (("sample.rollouts", sample.rollouts), ("report.rows", profile.report.rows)):
        if count > sample.videos:
            yield f"{name} is {count}; there are only sample.videos {sample.videos}"
    if profile.train_causal_teacher.steps and not model.frames_per_block:
        yield (
            f"train_causal_teacher.steps is {profile.train_causal_teacher.steps} and model.frames_per_block is null; "
            "a causal teacher is trained block by block: set model.frames_per_block to a number of latent frames, or "
            "set train_causal_teacher.steps to 0"
        )
    if profile.train_dmd.inputs == Inputs.TRUNCATED_ROLLOUT and not model.frames_per_block:
        yield (
            f"train_dmd.inputs is {Inputs.TRUNCATED_ROLLOUT} and model.frames_per_block is null; a bidirectional "
            f"student has no KV cache at which gradients could stop: set train_dmd.inputs to {Inputs.ROLLOUT}"
        )
    yield from _batch_problems(profile)


def _batch_problems(profile: Profile) -> Iterator[str]:
    """Yield a sentence for each batch that cannot be split equally into workers and micro-batches."""
    workers, micro_batches = profile.compute.workers, profile.compute.gradient_accumulation_steps
    for stage, config, parts in (
        ("train_vae", profile.train_vae, 1),
        ("train_teacher", profile.train_teacher, micro_batches),
        ("train_causal_teacher", profile.train_causal_teacher, micro_batches),
        ("train_ode_init", profile.train_ode_init, micro_batches),
        ("train_dmd", profile.train_dmd, micro_batches),
    ):
        size = config.batch_size
        if config.steps and size % workers:
            yield f"{stage}.batch_size is {size}; compute.workers {workers} must divide it"
        elif config.steps and size // workers % parts:
            yield (
                f"{stage}.batch_size is {size}, {size // workers} for each of compute.workers {workers}; "
                f"compute.gradient_accumulation_steps {parts} must divide that"
            )
