"""Compute FLOPs, time, memory, disk and network of every stage before a profile runs.

``python -m causvid.plan [params.yaml]`` also checks that the sections fit together (``causvid/consistency.py``), and
lists the limits of this machine.

``causvid/wan/costs.py`` explains which FLOPs are counted. The memory of activations and the size of compressed videos
are estimates.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, get_args

import psutil
import typer

from causvid.compute import device
from causvid.compute.parallel import Checkpointing, Compute
from causvid.compute.precision import Precision
from causvid.consistency import read_profile
from causvid.costs import CPU, HALF, KINDS, SINGLE, Clip, Row, Workers, duration, scaled
from causvid.methods.dmd.cost import DmdCost
from causvid.methods.ode_init.cost import ode_init_row
from causvid.methods.teacher.cost import teacher_row
from causvid.methods.vae.cost import vae_row
from causvid.profile import Profile
from causvid.runtime.shapes import BlockLayout
from causvid.wan.costs import Transformer, VaeCost, text_encoder_parameters, vae_cost
from causvid.wan.formats.configs import latent_shape

VIDEO_BITS = 0.3  # rounded number of H.264 bits per pixel at the crf values of the profiles
CAPTIONS = (".txt", ".json")  # suffixes of files in a folder of videos that are captions
MIXKIT_VIDEOS = 6484  # number of captions in sample_dataset of the original CausVid code


class Plan:
    """The shapes and the cost of a profile that ``causvid.consistency`` accepts."""

    def __init__(self, profile: Profile) -> None:
        model, compute = profile.model, profile.compute
        self.profile, self.video, self.schedule = profile, profile.video, profile.schedule
        self.latent = latent_shape(model.vae, profile.video)
        per_block = model.frames_per_block or self.latent.frames
        self.layout = BlockLayout(frames=self.latent.frames, frames_per_block=per_block)
        self.transformer = Transformer.of(model.transformer)
        self.text_tokens = model.text_tokens
        self.bytes = HALF if model.precision == Precision.BFLOAT16 else SINGLE
        self.clip = Clip(
            transformer=self.transformer,
            layout=self.layout,
            frame_tokens=self.transformer.tokens(self.latent),
            text_tokens=self.text_tokens,
        )
        self.workers = Workers(
            count=compute.workers,
            shards=compute.workers if compute.shard_weights else 1,
            micro_batches=compute.gradient_accumulation_steps,
            value_bytes=self.bytes,
            weights=self.transformer.parameters,
            layers=self.transformer.num_layers,
            kept=self.kept(compute.gradient_checkpointing),
        )

    @cached_property
    def vae(self) -> VaeCost:
        """Cost of the VAE. The slow import of diffusers happens only if this property is used."""
        return vae_cost(self.profile.model.vae, self.video, self.latent)

    @cached_property
    def dmd(self) -> DmdCost:
        """Cost of DMD on one clip."""
        return DmdCost(
            clip=self.clip,
            config=self.profile.train_dmd,
            few_steps=len(self.schedule.denoising_timesteps),
            causal=self.profile.model.frames_per_block is not None,
            scored=self.clip.in_blocks_of(None),
        )

    @property
    def clip_bytes(self) -> float:
        """Estimated number of bytes of a clip in H.264."""
        return self.video.height * self.video.width * self.video.frames * VIDEO_BITS / 8

    @property
    def latent_bytes(self) -> int:
        """Number of bytes of the float16 latents of a clip, which are one row of the LMDB."""
        return HALF * math.prod(self.latent.sizes)

    @property
    def clips(self) -> int:
        """Number of videos of the stage ``download``, before any video is rejected."""
        config = self.profile.download
        if config.source == "toy_world":
            count = config.toy_world_clips
        elif config.source == "mixkit":
            count = MIXKIT_VIDEOS
        else:
            count = sum(path.is_file() and path.suffix not in CAPTIONS for path in config.folder.rglob("*"))
        return min(count, config.limit or count)

    def kv_cache(self) -> int:
        """Return the bytes of the KV cache of a causal model for one clip; 0 without causal models."""
        if self.profile.model.frames_per_block is None:
            return 0
        return self.transformer.kv_cache_bytes(self.clip.tokens, self.bytes)

    def kept(self, checkpointing: Checkpointing) -> float:
        """Return the bytes of activations that are stored for the backward pass of one sample."""
        return self.transformer.activation_bytes(self.clip.tokens, self.bytes, checkpointing)

    def student_clip(self) -> float:
        """Return the FLOPs with which the few-step student generates one clip."""
        return self._block_by_block(len(self.schedule.denoising_timesteps)) + self.vae.decode(self.latent.frames)

    def teacher_clip(self, guidance_scale: float, *, decode: bool = True) -> float:
        """Return the FLOPs with which the teacher generates one clip."""
        passes = self.schedule.solver_steps * self._predictions(guidance_scale)
        return passes * self.clip.bidirectional.forward + (self.vae.decode(self.latent.frames) if decode else 0)

    def causal_teacher_clip(self, guidance_scale: float) -> float:
        """Return the FLOPs with which the causal teacher generates one clip."""
        clip = self._predictions(guidance_scale) * self._block_by_block(self.schedule.solver_steps)
        return clip + self.vae.decode(self.latent.frames)

    def _predictions(self, guidance_scale: float) -> int:
        """Return the number of forward passes of a solver step: guidance needs an unconditional prediction as well."""
        return 1 if guidance_scale == 1 else 2

    def _block_by_block(self, steps: int) -> float:
        """Return the FLOPs of the forward passes with which a causal model generates one clip.

        Every block needs one forward pass per step. Every block except the last needs one more forward pass, which
        writes the block into the cache.
        """
        passes = [self.clip.block_pass(block).forward for block in range(self.layout.blocks)]
        text = self.transformer.forward(0, 0, self.text_tokens).forward
        return text + (steps + 1) * sum(passes) - passes[-1]

    def rows(self) -> list[Row]:
        """Return the costs of all stages, in the order of the pipeline."""
        return [*self._data(), *self.training(), *self._judging()]

    def _data(self) -> Iterator[Row]:
        profile, row = self.profile, self.latent_bytes
        everything, every_token = text_encoder_parameters(profile.model.text_encoder)
        prompts = self.clips + profile.sample.videos + 1
        raw = self.clips * self.clip_bytes if profile.download.source == "toy_world" else None
        network = None if profile.download.source == "mixkit" else 0.0
        yield Row(stage="download", work=f"{self.clips} videos", disk=raw, network=network)
        yield Row(stage="resample", work=f"{self.clips} clips", disk=self.clips * self.clip_bytes)
        yield vae_row(profile.train_vae, self.vae, self.latent.frames)
        embedding = self.text_tokens * profile.model.text_encoder["d_model"] * self.bytes
        yield Row(
            stage="encode_prompts",
            work=f"{prompts} prompts",
            flops=2.0 * every_token * self.text_tokens * prompts,
            memory=everything * self.bytes,
            disk=prompts * embedding + everything * self.bytes,  # later prompts need the encoder
            network=SINGLE * everything if profile.encode_prompts.init.hub else 0.0,
        )
        yield Row(
            stage="extract_latents",
            work=f"{self.clips} clips",
            flops=self.clips * self.vae.encode(self.latent.frames),
            memory=self.vae.parameters * self.bytes,
            disk=self.clips * row,
        )
        yield Row(stage="pack_lmdb@latents", work=f"{self.clips} rows of {row:,} bytes", disk=self.clips * row)

    def training(self, *, causal_teacher: bool = False) -> Iterator[Row]:
        """Yield the costs of the stages that train transformers, and of the ODE pairs.

        Args:
            causal_teacher: Whether teacher and critic of DMD are causal (CausVid Table 4).
        """
        profile, pairs, states = self.profile, self.profile.generate_ode_pairs, len(self.schedule.stored_timesteps())
        row = states * self.latent_bytes
        yield teacher_row("train_teacher", profile.train_teacher, self.clip.bidirectional, self.workers)
        yield teacher_row("train_causal_teacher", profile.train_causal_teacher, self.clip.causal, self.workers)
        yield Row(
            stage="generate_ode_pairs",
            work=f"{pairs.pairs} pairs, {states} states each",
            flops=pairs.pairs * self.teacher_clip(pairs.guidance_scale, decode=False),
            memory=self.bytes * self.transformer.parameters,
            disk=pairs.pairs * row,
        )
        yield Row(stage="pack_lmdb@ode_pairs", work=f"{pairs.pairs} rows of {row:,} bytes", disk=pairs.pairs * row)
        yield ode_init_row(profile.train_ode_init, self.clip, self.workers)
        dmd = replace(self.dmd, scored=self.clip) if causal_teacher else self.dmd
        yield dmd.row(self.workers)

    def _judging(self) -> Iterator[Row]:
        config, latency = self.profile.sample, self.profile.measure_latency
        loaded = self.bytes * (self.transformer.parameters + self.vae.parameters)
        cache = self.kv_cache() * config.batch_size
        long, teacher_clip = config.rollouts * config.rollout_clips, self.teacher_clip(config.guidance_scale)
        if self.profile.model.frames_per_block is None:
            long = 0  # only causal models generate rollouts
        for name, clip_flops, caches in (
            ("teacher", teacher_clip, 0),
            (
                "causal_teacher",
                self.causal_teacher_clip(config.guidance_scale),
                self._predictions(config.guidance_scale),
            ),
            ("ode_init", self.student_clip(), 1),
            ("dmd", self.student_clip(), 1),
        ):
            clips, work = config.videos, f"{config.videos} videos"
            if caches and long:
                clips, work = clips + long, f"{work}, {long} clips of rollouts"
            yield Row(
                stage=f"sample@{name}",
                work=work,
                flops=clips * clip_flops,
                memory=loaded + caches * cache,
                disk=clips * self.clip_bytes,
            )
        yield Row(stage="evaluate", work="6 folders; VBench's own models are not counted", disk=None)
        runs = latency.warmup + latency.repeats
        yield Row(
            stage="measure_latency",
            work=f"{runs} clips of each",
            flops=runs * (teacher_clip + self.student_clip()),
            memory=loaded + cache + self.bytes * self.transformer.parameters,
        )


def obstacles(rows: Sequence[Row], compute: Compute, kind: str) -> Iterator[str]:
    """Yield the reasons why this machine, or GPUs of the type ``kind``, cannot run the plan."""
    disk, gpus = sum(row.disk or 0 for row in rows), compute.gpus_per_worker > 0
    peak = max(rows, key=lambda row: row.memory)
    needs, workers = f"{peak.stage} needs about {scaled(peak.memory, 'B')} a worker", compute.workers
    if gpus and device.pick().type == "cpu":
        yield f"compute.workers and compute.gpus_per_worker ask for {workers} workers with a GPU each; no GPU is here"
    if gpus and peak.memory > KINDS[kind].memory:
        yield f"{needs}; one {kind} has {scaled(KINDS[kind].memory, 'B')}"
    memory = psutil.virtual_memory().total
    if peak.memory * (1 if gpus else workers) > memory:
        yield f"{needs}; this machine has {scaled(memory, 'B')}"
    free = shutil.disk_usage(Path.cwd()).free
    if disk > free:
        yield f"the outputs need about {scaled(disk, 'B')} plus the size of the videos; {scaled(free, 'B')} are free"


def render(plan: Plan, *, machines: int, kind: str, achieved: float) -> str:
    """Format the plan as text: shapes, one line per stage, totals, and the limits of this machine."""
    precision, rows = plan.profile.model.precision, plan.rows()
    peak = KINDS[kind].peak[precision]
    rate = machines * peak * achieved
    lines = [
        *_shapes(plan),
        f"  time       on {machines} x {kind} at {achieved:.0%} of {scaled(peak, 'FLOP/s')} each ({precision})",
        "",
        f"{'stage':20s}{'FLOP':>10s}{'time':>10s}{'memory':>10s}{'disk':>10s}{'network':>10s}  work",
        *(_line(row.stage, row.flops, rate, row.memory, row.disk, row.network, row.work) for row in rows),
    ]
    total, disk = sum(row.flops for row in rows), sum(row.disk or 0 for row in rows)
    lines += [_line("all", total, rate, max(row.memory for row in rows), disk, 0.0, "(memory: the largest)"), ""]
    reasons = list(obstacles(rows, plan.profile.compute, kind))
    if not reasons:
        return "\n".join([*lines, "This machine can run it."])
    return "\n".join([*lines, "This machine cannot run it:", *(f"  - {reason}" for reason in reasons)])


def _shapes(plan: Plan) -> Iterator[str]:
    video, transformer = plan.video, plan.transformer
    teacher = plan.teacher_clip(plan.profile.sample.guidance_scale)
    latent = "x".join(map(str, plan.latent.sizes))
    yield f"Profile {plan.profile.profile}"
    yield f"  clip       {video.frames} frames of {video.width}x{video.height} at {video.fps} a second"
    yield f"  latent     {latent} (channels, frames, height, width), {plan.latent_bytes:,} bytes in float16"
    tokens = (
        f"{plan.clip.frame_tokens:,} a latent frame, {plan.clip.block_tokens:,} a block, {plan.clip.tokens:,} a clip"
    )
    yield f"  tokens     {tokens}"
    yield f"  blocks     {plan.layout.blocks} of {plan.layout.frames_per_block} latent frames"
    yield f"  weights    transformer {transformer.parameters:,}, VAE {plan.vae.parameters:,}"
    cache = transformer.kv_cache_bytes(1, plan.bytes)
    yield f"  KV cache   {cache:,} bytes a token, {scaled(plan.kv_cache(), 'B')} a clip"
    student = scaled(plan.student_clip(), "FLOP")
    yield f"  one clip   teacher {scaled(teacher, 'FLOP')}, student {student}, decoding included"
    chosen = plan.profile.compute.gradient_checkpointing
    kept = {name: scaled(plan.kept(name), "B") for name in get_args(Checkpointing)}
    others = ", ".join(f"{name} {size}" for name, size in kept.items() if name != chosen)
    yield "  memory     of one worker: weights, gradients, optimiser, average, KV cache; of a transformer in training"
    yield f"             about {kept[chosen]} of activations a sample, gradient checkpointing {chosen} ({others})"


def main(
    params: Annotated[Path, typer.Argument(help="the params file")] = Path("params.yaml"),
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; by default H100, or CPU core without GPUs")] = "",
    machines: Annotated[int, typer.Option(help="number of accelerators; default: as in params section compute")] = 0,
    achieved: Annotated[float, typer.Option(help="achieved fraction of the peak; 0 = default of the kind")] = 0.0,
) -> None:
    """Print the cost of a params file, and the limits of this machine."""
    try:
        plan = Plan(read_profile(params))
        compute = plan.profile.compute
        chosen = kind or ("H100" if compute.gpus_per_worker else CPU)
        if chosen not in KINDS:
            raise ValueError(f"--kind is {chosen!r}; known: {', '.join(KINDS)}")
    except ValueError as error:
        sys.exit(f"plan: {error}")
    asked = math.ceil(compute.workers * compute.gpus_per_worker) or os.cpu_count() or 1
    print(render(plan, machines=machines or asked, kind=chosen, achieved=achieved or KINDS[chosen].achieved))


def _line(
    stage: str, flops: float, rate: float, memory: float, disk: float | None, network: float | None, work: str
) -> str:
    cells = (scaled(flops, ""), duration(flops / rate), scaled(memory, "B"), scaled(disk, "B"), scaled(network, "B"))
    return f"{stage:20s}{''.join(f'{cell:>10s}' for cell in cells)}  {work}"


if __name__ == "__main__":
    typer.run(main)
