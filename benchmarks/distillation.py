"""DMD steps of a profile's models with random weights, against a straight writing of algorithm 1 in the same run.

``python -m benchmarks.distillation [PROFILE.yaml] [CLIPS]`` prints a line for each: seconds of a cycle (the profile's
critic updates and one of the student), clips a second, share of the device's peak (FLOPs counted without recomputation)
and peak memory. CLIPS is the batch of this one device; wan-1.3b on one GPU is the case that counts.

The peer, from a description of what the released step does: whole weights in float32 under autocast, every block's
activations made again in the backward pass, block-causal attention by FlexAttention's mask on a GPU, a pass of the
teacher for each half of the guidance, a fresh pass of the student for every update, optimisers a tensor at a time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from causvid import params
from causvid.costs import CPU, KINDS
from causvid.data.latent_store import Record, write_store
from causvid.data.prompt_store import write_prompts
from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import conditional
from causvid.losses.dmd import dmd_loss
from causvid.losses.flow_matching import flow_matching_loss
from causvid.models.wan import build_transformer, causal_student, for_training, load_transformer
from causvid.plan import Plan
from causvid.runtime import device as devices
from causvid.runtime.parallel import Compute
from causvid.runtime.tracking import Tracker, Watch
from causvid.training.dmd_step import DmdConfig, DmdJob, DmdStep

CLIPS_STORED, CYCLES = 8, 3


def prepared(values: dict[str, Any], clips: int, folder: Path) -> DmdJob:
    """What DMD reads, made of noise, in ``folder``."""
    plan = Plan(values)
    channels, *size = plan.latent.sizes
    generator = torch.Generator().manual_seed(0)
    names = [f"clip {number}" for number in range(CLIPS_STORED)]
    records = [Record(torch.randn(channels, *size, generator=generator), name) for name in names]
    write_store(records, folder / "latents", timesteps=None, per_transaction=1)
    config = values["model"]["transformer"]
    tokens: int = values["model"]["text_tokens"]
    embeddings = {name: torch.randn(tokens, config["text_dim"], generator=generator) for name in ["", *names]}
    write_prompts(folder / "prompts", embeddings, captions=names, evaluation=names, negative="", tokens=tokens)
    teacher = build_transformer(config, seed=0)
    teacher.save_pretrained(folder / "teacher")
    causal_student(teacher, plan.layout.frames_per_block).save_pretrained(folder / "student")
    dmd = params.build(DmdConfig, {**values["train_dmd"], "batch_size": clips}, name="train_dmd")
    return DmdJob(
        config=replace(dmd, critic_only_steps=0),
        schedule=plan.schedule,
        seed=0,
        precision=devices.Precision(values["model"]["precision"]),
        compute=replace(params.build(Compute, values["compute"], name="compute"), workers=1, shard_weights=False),
        latents=folder / "latents", prompts=folder / "prompts", teacher=folder / "teacher", student=folder / "student",
        work=folder / "work", tracker=cast(Tracker, None), made_from={},
        watch=Watch(samples_every=0, samples=1, keep_checkpoints_every=None),
        vae=folder / "vae", fps=8,
    )  # fmt: skip


def ours(job: DmdJob) -> Callable[[int], None]:
    """One cycle of the stage's own step."""
    step, ratio = DmdStep(job), job.config.critic_updates_per_student_update

    def cycle(number: int) -> None:
        for index in range(number * ratio, (number + 1) * ratio):
            step(index)

    return cycle


def straight(job: DmdJob) -> Callable[[int], None]:
    """One cycle of the peer. Its data and text wait on the device."""
    device, config = devices.pick(), job.config
    like = DmdStep(job)
    batch = like._read(0)
    text, negative = like.texts(batch.prompts), like.texts.negative().expand(len(batch.prompts), -1, -1)
    clean = batch.latents
    del like
    teacher = load_transformer(job.teacher).to(device).requires_grad_(False).eval()
    critic = for_training(load_transformer(job.teacher), device, gradient_checkpointing="full")
    student = for_training(load_transformer(job.student), device, gradient_checkpointing="full")
    if device.type != "cpu":
        student.set_attention_backend("flex")
    optimizers = {
        id(model): torch.optim.AdamW(model.parameters(), lr=1e-6, betas=config.critic_optimizer.betas, foreach=False)
        for model in (student, critic)
    }
    schedule: ScheduleConfig = job.schedule

    def sample() -> torch.Tensor:
        times = torch.tensor(schedule.denoising_timesteps, dtype=torch.float64, device=device)
        blocks = clean.shape[2] // student.config.frames_per_block
        chosen = times[torch.randint(len(times), (len(clean), blocks), device=device)]
        timestep = chosen.repeat_interleave(student.config.frames_per_block, dim=1)
        sigma = sigma_of(timestep)
        x_t = add_noise(clean, torch.randn_like(clean), sigma)
        return velocity_to_x0(x_t, conditional(student, text)(x_t, timestep), sigma)

    def halves(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        uncond, cond = (conditional(teacher, each)(x_t, timestep) for each in (negative, text))
        return uncond + config.guidance_scale * (cond - uncond)

    def update(model: torch.nn.Module, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.critic_optimizer.grad_clip, foreach=False)
        optimizers[id(model)].step()
        optimizers[id(model)].zero_grad()

    def times() -> torch.Tensor:
        return 20 + 960 * torch.rand(len(clean), dtype=torch.float64, device=device)

    def cycle(_: int) -> None:
        for number in range(config.critic_updates_per_student_update):
            if number == 0:
                with devices.autocast(device, job.precision):
                    out = dmd_loss(
                        sample(), torch.randn_like(clean), times(), teacher=halves, critic=conditional(critic, text)
                    )
                update(student, out.loss)
            with devices.autocast(device, job.precision):
                with torch.no_grad():
                    x0 = sample()
                loss = flow_matching_loss(conditional(critic, text), x0, torch.randn_like(x0), times())
            update(critic, loss)

    return cycle


def measure(name: str, make: Callable[[], Callable[[int], None]], clips: float, flops: float, peak: float) -> float:
    """Print a line; seconds of a cycle, the median of ``CYCLES`` after one that is not counted."""
    device = devices.pick()
    devices.forget_peak_memory(device)
    cycle, taken = make(), []
    for number in range(CYCLES + 1):
        devices.synchronize(device)
        started = time.perf_counter()
        cycle(number)
        devices.synchronize(device)
        taken.append(time.perf_counter() - started)
    seconds = statistics.median(taken[1:])
    held = devices.peak_memory(device)
    memory = f", {held / 1e9:.1f} GB" if held else ""
    share = f"{flops / seconds / peak:.1%} of {peak / 1e12:.3g} TFLOP/s"
    print(f"{name}: {seconds:.3g} s a cycle, {clips / seconds:.3g} clips/s, {share}{memory}", flush=True)
    return seconds


def main(profile: Path, clips: int) -> None:
    """Ours, then the peer, and their ratio."""
    values = dict(params.read(profile))
    device = devices.pick()
    with tempfile.TemporaryDirectory() as place:
        job = prepared(values, clips, Path(place))
        ratio, plan = job.config.critic_updates_per_student_update, Plan(values)
        flops = clips * (plan.dmd.student + ratio * plan.dmd.critic)
        name = next((kind for kind in KINDS if kind in devices.describe(device)), CPU)
        cores = torch.get_num_threads() if device.type == "cpu" else 1
        peak = cores * KINDS[name].peak[job.precision]
        print(f"{profile}: {ratio} critic updates and one of the student, {clips} clips, {devices.describe(device)}")
        mine = measure("ours", lambda: ours(job), clips * (ratio + 1), flops, peak)
        theirs = measure("straight", lambda: straight(job), clips * (ratio + 1), flops, peak)
        print(f"straight / ours: {theirs / mine:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml"), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
