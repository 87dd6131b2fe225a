"""Compute the cost of training the teacher."""

from __future__ import annotations

from causvid.costs import SINGLE, Flops, Row, Workers, scaled, steps_in_words
from causvid.methods.teacher.config import TeacherConfig


def teacher_row(stage: str, config: TeacherConfig, clip: Flops, workers: Workers) -> Row:
    """Return the cost of the stage ``train_teacher`` or ``train_causal_teacher``.

    Args:
        stage: Name of the stage.
        config: Params section of the stage.
        clip: FLOPs of a forward pass of the teacher over a clip.
        workers: The workers that train the transformer.
    """
    step, weights = config.batch_size * clip.training, SINGLE * workers.weights
    return Row(
        stage=stage,
        work=f"{steps_in_words(config.steps)} ({scaled(step, 'FLOP')} a step)",
        updates=config.steps,
        flops=config.steps * step,
        memory=workers.memory(config.batch_size, 1) if config.steps else weights,
        disk=weights,
        network=workers.traffic(config.steps * workers.exchanges) + (weights if config.init.hub else 0.0),
    )
