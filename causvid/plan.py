"""The cost of a profile before it runs: FLOPs, time, memory, disk and network of every stage.

``python -m causvid.plan [params.yaml]`` also checks the rules between the sections (``causvid/consistency.py``) and
names the limits of this machine.

FLOPs are counted as ``causvid/costs.py`` explains. Memory of activations and bytes of compressed video are estimates.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

import psutil
import typer

from causvid import params as params_file
from causvid.compute import device
from causvid.compute.parallel import Checkpointing
from causvid.consistency import latent_shape, problems
from causvid.costs import CPU, KINDS, Clip, Transformer, VaeCost, duration, scaled, text_encoder_parameters, vae_cost
from causvid.diffusion.schedule import ScheduleConfig
from causvid.methods.dmd.config import DmdConfig
from causvid.methods.dmd.cost import DmdCost
from causvid.runtime.shapes import BlockLayout, VideoShape

HALF, SINGLE = 2, 4  # bytes of a float16 or bfloat16, of a float32
# Bytes per trained weight: float32 weight, gradient and two moments of Adam; the weight average needs one float32 more.
TRAINED, AVERAGED = 4 * SINGLE, SINGLE
VIDEO_BITS = 0.3  # H.264 bits per pixel at the qualities profiles use, a round figure
MIXKIT_VIDEOS = 6484  # entries of the released captions file (CausVid repository, sample_dataset)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cost of one stage.

    Attributes:
        stage: Name of the stage.
        work: Its amount of work, in words.
        flops: FLOPs of the whole stage.
        memory: Peak bytes of one worker.
        disk: Bytes of its outputs; None = not known before.
        network: Bytes that each worker sends, or that a download receives; None = not known before.
    """

    stage: str
    work: str
    flops: float = 0.0
    memory: float = 0.0
    disk: float | None = 0.0
    network: float | None = 0.0


class Plan:
    """The shapes and the cost of a profile. Raises ValueError with all reasons if sections disagree."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        wrong = list(problems(values))
        if wrong:
            raise ValueError("; ".join(wrong))
        model = values["model"]
        self.values = values
        self.video = params_file.build(VideoShape, values["video"], name="video")
        self.latent = latent_shape(values)
        per_block = model["frames_per_block"] or self.latent.frames
        self.layout = BlockLayout(frames=self.latent.frames, frames_per_block=per_block)
        self.schedule = params_file.build(ScheduleConfig, values["schedule"], name="schedule")
        self.transformer = Transformer.of(model["transformer"])
        self.text_tokens: int = model["text_tokens"]
        self.bytes = HALF if model["precision"] == "bfloat16" else SINGLE
        self.clip = Clip(
            transformer=self.transformer,
            layout=self.layout,
            frame_tokens=self.transformer.tokens(self.latent),
            text_tokens=self.text_tokens,
        )
        self.workers: int = values["compute"]["workers"]
        self.accumulation: int = values["compute"]["gradient_accumulation_steps"]
        self.shards: int = self.workers if values["compute"]["shard_weights"] else 1
        # Micro-batches of an update after which workers exchange gradients: replicas do so only after the last one.
        self.exchanges: int = self.accumulation if self.shards > 1 else 1

    @cached_property
    def vae(self) -> VaeCost:
        """Cost of the VAE, counted once, because this imports diffusers."""
        return vae_cost(self.values["model"]["vae"], self.video, self.latent)

    @cached_property
    def dmd(self) -> DmdCost:
        """The cost of DMD on one clip."""
        return DmdCost(
            clip=self.clip,
            config=params_file.build(DmdConfig, self.values["train_dmd"], name="train_dmd"),
            few_steps=len(self.schedule.denoising_timesteps),
            causal=self.values["model"]["frames_per_block"] is not None,
        )

    @property
    def clip_bytes(self) -> float:
        """Bytes of a clip as H.264, estimated."""
        return self.video.height * self.video.width * self.video.frames * VIDEO_BITS / 8

    @property
    def latent_bytes(self) -> int:
        """Bytes of a clip's latents as float16, a row of the LMDB."""
        return HALF * math.prod(self.latent.sizes)

    @property
    def clips(self) -> int:
        """Number of videos of the download stage, before any is rejected."""
        section = self.values["download"]
        if section["source"] == "toy_world":
            return int(section["toy_world_clips"])
        folder = Path(section["folder"])
        found = MIXKIT_VIDEOS if section["source"] == "mixkit" else sum(p.is_file() for p in folder.rglob("*"))
        return min(found, section["limit"] or found)

    def kv_cache(self) -> int:
        """Return the bytes of the student's KV cache for one clip."""
        return self.transformer.kv_cache_bytes(self.clip.tokens, self.bytes)

    def kept(self, checkpointing: Checkpointing) -> float:
        """Return the bytes of activations that are kept for the backward pass of one sample."""
        return self.transformer.activation_bytes(self.clip.tokens, self.bytes, checkpointing)

    def student_clip(self) -> float:
        """Return the FLOPs of one clip of the few-step student.

        Every block needs one forward pass per step, and all but the last one more to write it into the cache.
        """
        steps = len(self.schedule.denoising_timesteps)
        passes = [self.clip.block_pass(block) for block in range(self.layout.blocks)]
        text = self.transformer.forward(0, 0, self.text_tokens).forward
        return text + (steps + 1) * sum(passes) - passes[-1] + self.vae.decode(self.latent.frames)

    def teacher_clip(self, guidance_scale: float, *, decode: bool = True) -> float:
        """Return the FLOPs of one clip of the teacher: one forward pass per solver step, two with guidance."""
        passes = self.schedule.solver_steps * (1 if guidance_scale == 1 else 2)
        return passes * self.clip.bidirectional.forward + (self.vae.decode(self.latent.frames) if decode else 0)

    def rows(self) -> list[Row]:
        """Return a row for every stage, in the order of the pipeline."""
        return [*self._data(), *self._training(), *self._judging()]

    def _data(self) -> Iterator[Row]:
        v, frames, row = self.values, self.latent.frames, self.latent_bytes
        hub = [v[stage]["init"]["hub"] for stage in ("train_vae", "encode_prompts", "train_teacher")]
        everything, every_token = text_encoder_parameters(v["model"]["text_encoder"])
        prompts = self.clips + v["sample"]["videos"] + 1
        made_here = v["download"]["source"] == "toy_world"
        raw = self.clips * self.clip_bytes if made_here else None
        yield Row(stage="download", work=f"{self.clips} videos", disk=raw, network=0.0 if made_here else None)
        yield Row(stage="resample", work=f"{self.clips} clips", disk=self.clips * self.clip_bytes)
        vae, size = v["train_vae"], self.vae.encode(frames) + self.vae.decode(frames)
        images = vae["image_steps"] * vae["image_batch_size"] * (self.vae.encode(1) + self.vae.decode(1))
        videos = (vae["steps"] - vae["image_steps"]) * vae["batch_size"] * size
        yield Row(
            stage="train_vae", work=_steps(vae["steps"]), flops=3 * (images + videos) + vae["held_out_clips"] * size,
            memory=self.vae.parameters * (TRAINED if vae["steps"] else SINGLE), disk=SINGLE * self.vae.parameters,
            network=SINGLE * self.vae.parameters if hub[0] else 0.0,
        )  # fmt: skip
        yield Row(
            stage="encode_prompts", work=f"{prompts} prompts", flops=2.0 * every_token * self.text_tokens * prompts,
            memory=everything * self.bytes, network=SINGLE * everything if hub[1] else 0.0,
            disk=prompts * self.text_tokens * v["model"]["text_encoder"]["d_model"] * self.bytes
            + everything * self.bytes,  # the encoder is kept, for prompts to come
        )  # fmt: skip
        yield Row(
            stage="extract_latents", work=f"{self.clips} clips", flops=self.clips * self.vae.encode(frames),
            memory=self.vae.parameters * self.bytes, disk=self.clips * row,
        )  # fmt: skip
        yield Row(stage="pack_lmdb@latents", work=f"{self.clips} rows of {row:,} bytes", disk=self.clips * row)

    def _training(self) -> Iterator[Row]:
        v, weights = self.values, self.transformer.parameters
        teacher, ode, dmd, pairs = v["train_teacher"], v["train_ode_init"], v["train_dmd"], v["generate_ode_pairs"]
        states = len(self.schedule.stored_timesteps())
        yield Row(
            stage="train_teacher", work=_steps(teacher["steps"]),
            flops=teacher["steps"]
            * teacher["batch_size"]
            * (self.clip.causal if teacher["causal"] else self.clip.bidirectional).training,
            memory=self._trained(teacher["batch_size"], 1) if teacher["steps"] else SINGLE * weights,
            network=self._reduced(teacher["steps"] * self.exchanges)
            + (SINGLE * weights if teacher["init"]["hub"] else 0.0),
            disk=SINGLE * weights,
        )  # fmt: skip
        yield Row(
            stage="generate_ode_pairs", work=f"{pairs['pairs']} pairs, {states} states each",
            flops=pairs["pairs"] * self.teacher_clip(pairs["guidance_scale"], decode=False),
            memory=self.bytes * weights, disk=pairs["pairs"] * states * self.latent_bytes,
        )  # fmt: skip
        yield Row(
            stage="pack_lmdb@ode_pairs", work=f"{pairs['pairs']} rows of {states * self.latent_bytes:,} bytes",
            disk=pairs["pairs"] * states * self.latent_bytes,
        )  # fmt: skip
        yield Row(
            stage="train_ode_init", work=_steps(ode["steps"]),
            flops=ode["steps"] * ode["batch_size"] * self.clip.causal.training,
            memory=self._trained(ode["batch_size"], 1), disk=SINGLE * weights,
            network=self._reduced(ode["steps"] * self.exchanges) + (SINGLE * weights if ode["init"]["hub"] else 0.0),
        )  # fmt: skip
        updates, exchanges = self.student_updates(), self.dmd.student_micro_batches(self.exchanges)
        yield Row(
            stage="train_dmd", work=f"{dmd['steps']} critic and {updates} student updates",
            flops=dmd["batch_size"] * (updates * self.dmd.student + dmd["steps"] * self.dmd.critic),
            memory=self._dmd_memory(), disk=SINGLE * weights,
            network=self._reduced(updates * exchanges, other_passes=self.dmd.untrained_passes() * exchanges)
            + self._reduced(dmd["steps"] * self.exchanges, trained=self.dmd.adapter or None),
        )  # fmt: skip

    def _judging(self) -> Iterator[Row]:
        v, weights = self.values, self.transformer.parameters
        section, latency = v["sample"], v["measure_latency"]
        loaded = self.bytes * (weights + self.vae.parameters)
        student = loaded + self.kv_cache() * section["batch_size"]
        long = section["rollouts"] * section["rollout_clips"]
        teacher_clip = self.teacher_clip(section["guidance_scale"])
        for name in ("teacher", "ode_init", "dmd"):
            is_teacher = name == "teacher"
            clips, work = section["videos"], f"{section['videos']} videos"
            if not is_teacher:
                clips, work = clips + long, f"{work}, {long} clips of rollouts"
            yield Row(
                stage=f"sample@{name}", work=work,
                flops=clips * (teacher_clip if is_teacher else self.student_clip()),
                memory=loaded if is_teacher else student, disk=clips * self.clip_bytes,
            )  # fmt: skip
        yield Row(stage="evaluate", work="5 folders; VBench's own models are not counted", disk=None)
        runs = latency["warmup"] + latency["repeats"]
        yield Row(
            stage="measure_latency", work=f"{runs} clips of each", flops=runs * (teacher_clip + self.student_clip()),
            memory=student + self.bytes * weights,
        )  # fmt: skip

    def _dmd_memory(self) -> float:
        """Return the peak memory of a worker in DMD: the student, its average and the critic in training, the teacher.

        A critic with an adapter is the teacher itself, and only its adapter is trained. Frozen weights that every
        worker holds whole are kept in the precision of the products.
        """
        batch, weights = self.dmd.config.batch_size, self.transformer.parameters
        frozen = self.bytes if self.shards == 1 else SINGLE / self.shards
        trained = self._trained(batch, self.dmd.networks, waiting=self.dmd.waiting)
        return trained + frozen * weights + TRAINED * self.dmd.adapter / self.shards + self._rollout_cache()

    def _rollout_cache(self) -> float:
        """Return the bytes of the cache in which a worker rolls out one micro-batch, in float32 as the weights."""
        if not self.dmd.rolls_out:
            return 0.0
        at_once = self.workers * self.dmd.student_micro_batches(self.accumulation)
        clips = max(1, self.dmd.config.batch_size // at_once)
        return clips * self.transformer.kv_cache_bytes(self.clip.tokens, SINGLE)

    def student_updates(self) -> int:
        """Return the number of student updates in ``train_dmd.steps`` critic updates."""
        return self.dmd.config.turns.student_updates(self.dmd.config.steps)

    def _trained(self, batch: int, networks: int, *, waiting: int = 0) -> float:
        """Return the peak bytes of a training: weights, gradients, moments, one weight average, activations.

        Args:
            batch: Global batch size.
            networks: Number of trained networks.
            waiting: Number of batches whose activations wait for their backward pass meanwhile.
        """
        samples = max(1, batch // self.workers // self.accumulation) + waiting * max(1, batch // self.workers)
        kept = samples * self.kept(self.values["compute"]["gradient_checkpointing"])
        held = self.transformer.parameters * (networks * TRAINED + AVERAGED) / self.shards
        # With sharding, the current layer and the next one are gathered.
        whole = 2 * self.bytes * self.transformer.parameters / self.transformer.num_layers if self.shards > 1 else 0.0
        return held + whole + kept

    def _reduced(self, updates: int, *, other_passes: float = 0.0, trained: int | None = None) -> float:
        """Return the bytes that each worker sends.

        A ring sends (n - 1) / n of the values to gather weights or to scatter a sum. Averaging gradients needs both.
        With sharding, the forward and the backward pass each gather the weights in the precision of the products.

        Args:
            updates: Forward and backward passes.
            other_passes: Forward passes without a backward pass; they only send with sharding.
            trained: Number of weights that have a gradient; None = all.
        """
        sent, weights = (self.workers - 1) / self.workers, self.transformer.parameters
        learned = weights if trained is None else trained
        if self.shards == 1:
            return updates * 2 * SINGLE * learned * sent
        held = weights if trained is None else weights + trained
        return (updates * (2 * self.bytes * held + SINGLE * learned) + other_passes * self.bytes * weights) * sent


def obstacles(rows: Sequence[Row], compute: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yield the reasons why this machine cannot run the plan, or why it does not fit GPUs of this kind."""
    disk, gpus = sum(row.disk or 0 for row in rows), compute["gpus_per_worker"] > 0
    peak = max(rows, key=lambda row: row.memory)
    needs, workers = f"{peak.stage} needs about {scaled(peak.memory, 'B')} a worker", compute["workers"]
    if gpus and device.pick().type == "cpu":
        yield f"compute.workers and compute.gpus_per_worker ask for {workers} workers with a GPU each; no GPU is here"
    if gpus and peak.memory > KINDS[kind].memory:
        yield f"{needs}; one {kind} has {scaled(KINDS[kind].memory, 'B')}"
    memory = psutil.virtual_memory().total
    if peak.memory * (1 if gpus else workers) > memory:
        yield f"{needs}; this machine has {scaled(memory, 'B')}"
    free = shutil.disk_usage(Path.cwd()).free
    if disk > free:
        yield f"its files take about {scaled(disk, 'B')} and what the videos weigh; {scaled(free, 'B')} are free here"


def render(plan: Plan, *, machines: int, kind: str, achieved: float) -> str:
    """Return the plan as text: shapes, one line per stage, totals, and the limits of this machine."""
    precision, rows = plan.values["model"]["precision"], plan.rows()
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
    reasons = list(obstacles(rows, plan.values["compute"], kind))
    if not reasons:
        return "\n".join([*lines, "This machine can run it."])
    return "\n".join([*lines, "This machine cannot run it:", *(f"  - {reason}" for reason in reasons)])


def _shapes(plan: Plan) -> Iterator[str]:
    video, transformer = plan.video, plan.transformer
    teacher = plan.teacher_clip(plan.values["sample"]["guidance_scale"])
    latent = "x".join(map(str, plan.latent.sizes))
    yield f"Profile {plan.values['profile']}"
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
    chosen = plan.values["compute"]["gradient_checkpointing"]
    kept = {name: scaled(plan.kept(name), "B") for name in get_args(Checkpointing)}
    others = ", ".join(f"{name} {size}" for name, size in kept.items() if name != chosen)
    yield "  memory     of one worker: weights, gradients, optimiser, average, KV cache; of a transformer in training"
    yield f"             about {kept[chosen]} of activations a sample, gradient checkpointing {chosen} ({others})"


def main(
    params: Annotated[Path, typer.Argument(help="the params file")] = Path("params.yaml"),
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; by default H100, or CPU core without GPUs")] = "",
    machines: Annotated[int, typer.Option(help="how many of them; by default what compute asks for")] = 0,
    achieved: Annotated[float, typer.Option(help="fraction of the peak; 0 = the kind's own")] = 0.0,
) -> None:
    """Print the cost of a params file, and the limits of this machine."""
    try:
        plan = Plan(params_file.read(params))
        compute = plan.values["compute"]
        chosen = kind or ("H100" if compute["gpus_per_worker"] else CPU)
        if chosen not in KINDS:
            raise ValueError(f"--kind is {chosen!r}; known: {', '.join(KINDS)}")
    except ValueError as error:
        sys.exit(f"plan: {error}")
    asked = math.ceil(compute["workers"] * compute["gpus_per_worker"]) or os.cpu_count() or 1
    print(render(plan, machines=machines or asked, kind=chosen, achieved=achieved or KINDS[chosen].achieved))


def _steps(steps: int) -> str:
    return f"{steps} steps" if steps else "0 steps: the initial weights as they are"


def _line(
    stage: str, flops: float, rate: float, memory: float, disk: float | None, network: float | None, work: str
) -> str:
    cells = (scaled(flops, ""), duration(flops / rate), scaled(memory, "B"), scaled(disk, "B"), scaled(network, "B"))
    return f"{stage:20s}{''.join(f'{cell:>10s}' for cell in cells)}  {work}"


if __name__ == "__main__":
    typer.run(main)
