"""Compare the speed of DMD steps with a straight implementation of algorithm 1 in the same run. Weights are random.

``python -m benchmarks.distillation [PROFILE.yaml] [CLIPS]`` prints one line for each implementation. A line contains
the seconds of a cycle (the profile's critic updates and one student update), clips per second, the share of the
device's peak FLOP/s (recomputation is not counted) and the peak memory. CLIPS is the batch size on this device. The
relevant case is wan-1.3b on a GPU.

The straight implementation follows a description of the step in the original CausVid code. Weights are replicated, in
float32 and under autocast. All activations are checkpointed. Attention is block-causal, with FlexAttention's mask on a
GPU. The teacher has one forward pass with and one without the prompt. The student has a new forward pass for every
update. Optimizers update one tensor at a time.

The ratio compares equal work: the step of this repository has the inputs and the optimizer of the straight
implementation, and the profile's ``compute``. In addition, the step reads its batches and computes an average of the
weights. If a profile defines other work (rollouts, shared samples, Muon), an additional line shows the time of this
work, without a comparison.

tests/unit/training/test_at_scale.py checks without a GPU that the step runs with 1.3B weights and latents of 21 x 60 x
104, and needs the FLOPs that are counted here.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from causvid import params
from causvid.compute import device as devices
from causvid.compute.parallel import Compute
from causvid.compute.precision import Precision
from causvid.consistency import checked
from causvid.data.stores.latent_store import LatentStore, Record, write_store
from causvid.data.stores.prompt_store import PromptStore, write_prompts
from causvid.diffusion.flow import add_noise, sigma_of, velocity_to_x0
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import conditional
from causvid.harness.tracking import Tracker, Watch
from causvid.methods.dmd.config import DmdConfig
from causvid.methods.dmd.loss import dmd_loss
from causvid.methods.dmd.samples import DmdRun
from causvid.methods.dmd.step import DmdStep
from causvid.methods.shared.batches import Texts, read_batch
from causvid.methods.shared.flow_matching import flow_matching_loss
from causvid.methods.shared.recording import Clips, student_record
from causvid.plan import Plan
from causvid.speed import peak_flops
from causvid.training.run import Run
from causvid.wan.transformer.wan import as_causal, build_transformer, load_transformer

CLIPS_STORED = 8
ONE_DEVICE = {"workers": 1, "shard_weights": False, "gradient_accumulation_steps": 1}
Cycle = Callable[[int], None]


def same_work(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the work of the straight implementation: new noised clips for every update, and AdamW."""
    section = values["train_dmd"]
    optimizers = {name: {**section[name], "kind": "adamw"} for name in ("student_optimizer", "critic_optimizer")}
    inputs = {"inputs": "data", "share_samples": False, "image_share": 0.0, "critic_lora_rank": None}
    return {**values, "train_dmd": {**section, **optimizers, **inputs}}


def dmd_config(values: dict[str, Any], clips: int) -> DmdConfig:
    """Return the DMD params of a profile for one device. The first cycle already has a student update."""
    section = {**values["train_dmd"], "batch_size": clips, "critic_only_steps": 0}
    return params.build(DmdConfig, section, name="train_dmd")


def prepared(values: dict[str, Any], clips: int, folder: Path) -> DmdRun:
    """Write random latents and random prompt embeddings to ``folder``, and return the run that reads these files.

    The models of the run do not exist before ``write_models`` is called.
    """
    plan = Plan(checked(values))
    channels, *size = plan.latent.sizes
    generator = torch.Generator().manual_seed(0)
    names = [f"clip {number}" for number in range(CLIPS_STORED)]
    records = [Record(torch.randn(channels, *size, generator=generator), name) for name in names]
    write_store(records, folder / "latents", timesteps=None, per_transaction=1)
    tokens, width = values["model"]["text_tokens"], values["model"]["transformer"]["text_dim"]
    embeddings = {name: torch.randn(tokens, width, generator=generator) for name in ["", *names]}
    write_prompts(folder / "prompts", embeddings, captions=names, evaluation=names, negative="", tokens=tokens)
    precision = Precision(values["model"]["precision"])
    clip, blocks = Clips(video=plan.video, latents=None), values["model"]["frames_per_block"]
    return Run(
        config=dmd_config(values, clips),
        record=student_record(clip, plan.schedule, folder / "prompts", precision, blocks),
        seed=0,
        precision=precision,
        compute=params.build(Compute, {**values["compute"], **ONE_DEVICE}, name="compute"),
        watch=Watch(samples_every=0, samples=1, keep_checkpoints_every=None),
        tracker=cast(Tracker, None),
        made_from={},
        work=folder / "work",
        inputs={name: folder / name for name in ("latents", "prompts", "teacher", "student", "vae")},
    )


def write_models(values: dict[str, Any], run: DmdRun) -> None:
    """Write a teacher and a student with random weights."""
    teacher = build_transformer(values["model"]["transformer"], seed=0)
    teacher.save_pretrained(run.inputs["teacher"])
    as_causal(teacher, values["model"]["frames_per_block"]).save_pretrained(run.inputs["student"])


def ours(run: DmdRun) -> Cycle:
    """Return a cycle of the training step that the stage uses."""
    step, ratio = DmdStep(run), run.config.critic_updates_per_student_update

    def cycle(number: int) -> None:
        for index in range(number * ratio, (number + 1) * ratio):
            step(index)

    return cycle


def straight(run: DmdRun) -> Cycle:
    """Return a cycle of the straight implementation. Clips and embeddings are on the device before the measurement."""
    device, config = devices.pick(), run.config
    store, texts = (
        LatentStore(run.inputs["latents"]),
        Texts(PromptStore(run.inputs["prompts"]), device, run.inputs["latents"]),
    )
    clean, prompts, _ = read_batch(store, seed=run.seed, step=0, size=config.batch_size, device=device)
    text, negative = texts(prompts), texts.negative().expand(len(prompts), -1, -1)
    teacher = load_transformer(run.inputs["teacher"]).to(device).requires_grad_(False)
    student, critic = (
        load_transformer(folder).to(device).train() for folder in (run.inputs["student"], run.inputs["teacher"])
    )
    for model in (student, critic):
        model.enable_gradient_checkpointing()
    if device.type != "cpu":
        student.set_attention_backend("flex")
    optimizers = {
        id(model): torch.optim.AdamW(model.parameters(), lr=1e-6, betas=config.critic_optimizer.betas, foreach=False)
        for model in (student, critic)
    }
    schedule: ScheduleConfig = run.record.schedule

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
                with devices.autocast(device, run.precision):
                    out = dmd_loss(
                        sample(), torch.randn_like(clean), times(), teacher=halves, critic=conditional(critic, text)
                    )
                update(student, out.loss)
            with devices.autocast(device, run.precision):
                with torch.no_grad():
                    x0 = sample()
                loss = flow_matching_loss(conditional(critic, text), x0, torch.randn_like(x0), times())
            update(critic, loss)

    return cycle


def measure(make: Callable[[], Cycle], cycles: int) -> tuple[list[float], int | None]:
    """Run one cycle that is not counted, then ``cycles`` counted cycles, and free the models.

    Returns:
        The seconds of each counted cycle, and the peak memory in bytes. If the device does not report the peak memory,
        the second value is None.
    """
    device = devices.pick()
    devices.forget_peak_memory(device)
    cycle, taken = make(), []
    for number in range(cycles + 1):
        devices.synchronize(device)
        started = time.perf_counter()
        cycle(number)
        devices.synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken[1:], devices.peak_memory(device)


def line(values: dict[str, Any], clips: int, taken: Sequence[float], memory: int | None) -> str:
    """Return the median cycle as text."""
    seconds, ratio = statistics.median(taken), values["train_dmd"]["critic_updates_per_student_update"]
    cost = Plan(checked(values)).dmd
    peak = peak_flops(devices.pick(), values["model"]["precision"])
    said = f"{seconds:.3g} s a cycle, {clips * (ratio + 1) / seconds:.3g} clips/s"
    if peak:
        said += f", {clips * (cost.student + ratio * cost.critic) / seconds / peak:.1%} of {peak / 1e12:.3g} TFLOP/s"
    return f"{said}, {memory / 1e9:.1f} GB" if memory else said


def main(profile: Path, clips: int) -> None:
    """Measure both implementations alternately, and the profile's own step if it does other work. Print the results."""
    stated, device = params.read(profile), devices.pick()
    values = same_work(stated)
    # Other processes may use the CPU. Alternating short runs distribute this load evenly. A GPU is not shared.
    turns, cycles = (7, 1) if device.type == "cpu" else (1, 3)
    with tempfile.TemporaryDirectory() as place:
        run = prepared(values, clips, Path(place))
        write_models(values, run)
        runs = {"ours": (values, partial(ours, run)), "straight": (values, partial(straight, run))}
        if (config := dmd_config(stated, clips)) != run.config:
            own = partial(ours, replace(run, config=config))
            runs["ours as the profile states it, not the peer's work"] = stated, own
        taken: dict[str, list[float]] = {name: [] for name in runs}
        memory: dict[str, int | None] = {}
        for name, (_, make) in [*runs.items()] * turns:
            seconds, memory[name] = measure(make, cycles)
            taken[name] += seconds
            print(f"{name}: {', '.join(f'{each:.3g}' for each in seconds)} s", file=sys.stderr, flush=True)
    ratio, kept = run.config.critic_updates_per_student_update, run.compute.gradient_checkpointing
    print(f"{profile}: {ratio} critic updates and one of the student, {clips} clips, {devices.describe(device)}")
    print(f"gradient checkpointing: ours {kept}, straight full; medians of {turns * cycles} cycles")
    for name, (numbers, _) in runs.items():
        print(f"{name}: {line(numbers, clips, taken[name], memory[name])}")
    ratios = [theirs / mine for mine, theirs in zip(taken["ours"], taken["straight"], strict=True)]
    print(f"straight / ours: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml"), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
