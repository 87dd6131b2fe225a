"""Train the student to predict the end of the teacher's ODE trajectories (ODE initialisation, CausVid eq. 6)."""

from __future__ import annotations

from pathlib import Path

import torch

from causvid.compute import device as devices
from causvid.data.stores.latent_store import LatentStore
from causvid.data.stores.prompt_store import PromptStore
from causvid.diffusion.schedule import COLUMN_TOLERANCE
from causvid.methods.ode_init.config import OdeConfig
from causvid.methods.ode_init.loss import ode_regression_loss
from causvid.methods.previews import previews_of
from causvid.methods.shared.batches import Batch, Texts, accumulate, read_batch
from causvid.methods.shared.networks import Trainee
from causvid.methods.shared.timesteps import block_choices
from causvid.record import StudentRecord
from causvid.runtime.seeding import generator
from causvid.runtime.shapes import BlockLayout
from causvid.speed import Counts, clip_of
from causvid.training.checkpoint import Stateful
from causvid.training.distributed import weight_of
from causvid.training.run import Run
from causvid.training.trainer import train
from causvid.wan.transformer.wan import load_start

OdeRun = Run[OdeConfig, StudentRecord]


class OdeStep:
    """An optimizer step of ODE regression."""

    def __init__(self, run: OdeRun) -> None:
        self.run, self.device = run, devices.pick()
        pairs, blocks = run.inputs["pairs"], run.record.frames_per_block
        self.store = LatentStore(pairs)
        self.texts = Texts(PromptStore(run.inputs["prompts"]), self.device, pairs if run.config.steps else None)
        times = [*run.record.schedule.denoising_timesteps, 0.0]
        self.store.require_timesteps(times, COLUMN_TOLERANCE)
        self.timesteps = torch.tensor(times, dtype=torch.float64)
        shape = self.store.metadata["shape"][1:]
        self.layout = BlockLayout(frames=shape[0], frames_per_block=blocks or shape[0])
        # Clean blocks are context for later blocks. The clip of a bidirectional student is a single block.
        self.choices = len(times) - (0 if blocks else 1)
        start = load_start(run.config.init.locate("transformer") or run.inputs["start"], blocks)
        self.student = Trainee(start, run, run.config.optimizer, ema_decay=run.config.ema_decay)
        self.clip = clip_of(self.student.model.config, shape, blocks, self.texts.length)

    def state(self) -> dict[str, Stateful]:
        """Return the student's weights, their average and the optimizer."""
        return self.student.state()

    def export(self, folder: Path) -> None:
        """Save the weight average."""
        self.student.export(folder, self.run.record)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Do a regression step. Each block of the input is a random state of the trajectory; the target is its end."""
        run = self.run
        batch = read_batch(self.store, seed=run.seed, step=step, size=run.config.batch_size, device=self.device)
        micro_batches = batch.micro_batches(run.compute.gradient_accumulation_steps)
        # The loss is a mean over noisy frames, and their number differs between ranks and between micro-batches.
        noisy = self._noisy(self._choices(batch))
        loss = accumulate(self.student.model, micro_batches, lambda part: self._loss(part, noisy), step)
        return {"loss": loss, "grad_norm": self.student.step(step)}

    def _choices(self, batch: Batch) -> torch.Tensor:
        """Draw for each frame the index of the trajectory's state that is the input of the student [b, F]."""
        draws = [generator(self.run.seed, "ode", number) for number in batch.numbers]
        return torch.stack([block_choices(self.layout, self.choices, draw) for draw in draws])

    def _noisy(self, chosen: torch.Tensor) -> torch.Tensor:
        return (self.timesteps[chosen] > 0).sum().to(self.device, torch.float32)

    def _loss(self, batch: Batch, noisy: torch.Tensor) -> torch.Tensor:
        """Return the term of the micro-batch ``batch`` in the loss of this rank, which has ``noisy`` noisy frames."""
        chosen = self._choices(batch)
        states = pick_states(batch.latents, chosen.to(self.device))
        with devices.autocast(self.device, self.run.precision):
            loss = ode_regression_loss(
                self.student.velocity(self.texts(batch.prompts)),
                states,
                self.timesteps[chosen].to(self.device),
                batch.latents[:, -1],
            )
        return loss * weight_of(self._noisy(chosen), noisy)

    def counts(self, step: int) -> Counts:
        """Return the counts of a training step with one forward and one backward pass."""
        size = self.run.config.batch_size
        return Counts(size, size * self.clip.tokens, size * self.clip.causal.training)


def pick_states(trajectory: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Select one state of the trajectory for every frame.

    Args:
        trajectory: States [B, T, C, F, H, W].
        chosen: Index of the state for each sample and frame [B, F].

    Returns:
        Latents [B, C, F, H, W]. Frame f of sample b is frame f of the state ``chosen[b, f]``.
    """
    batch, _, _, frames, _, _ = trajectory.shape
    rows = torch.arange(batch, device=trajectory.device)[:, None]
    columns = torch.arange(frames, device=trajectory.device)[None]
    return trajectory.transpose(2, 3)[rows, chosen, columns].transpose(1, 2).contiguous()


def train_ode_init(run: OdeRun) -> None:
    """Train the student on every rank. With zero steps, the initial student is exported unchanged."""
    step = OdeStep(run)
    train(step, run, previews_of(run, step.student, step.texts.store))
