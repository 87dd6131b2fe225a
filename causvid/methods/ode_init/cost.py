"""Compute the cost of ODE initialisation."""

from __future__ import annotations

from causvid.costs import SINGLE, Clip, Row, Workers, steps_in_words
from causvid.methods.ode_init.config import OdeConfig


def ode_init_row(config: OdeConfig, clip: Clip, workers: Workers) -> Row:
    """Return the cost of the stage ``train_ode_init``.

    Args:
        config: Params section ``train_ode_init``.
        clip: The clip, with the FLOPs of the transformer on this clip.
        workers: The workers that train the transformer.
    """
    weights = SINGLE * workers.weights
    return Row(
        stage="train_ode_init",
        work=steps_in_words(config.steps),
        updates=config.steps,
        flops=config.steps * config.batch_size * clip.causal.training,
        memory=workers.memory(config.batch_size, 1),
        disk=weights,
        network=workers.traffic(config.steps * workers.exchanges) + (weights if config.init.hub else 0.0),
    )
