"""Compute the cost of training the VAE."""

from __future__ import annotations

from causvid.costs import SINGLE, TRAINED, Row, steps_in_words
from causvid.methods.vae.config import VaeConfig
from causvid.wan.costs import VaeCost


def vae_row(config: VaeConfig, vae: VaeCost, frames: int) -> Row:
    """Return the cost of the stage ``train_vae``.

    Args:
        config: Params section ``train_vae``.
        vae: FLOPs and number of weights of the VAE.
        frames: Number of latent frames in a clip.
    """
    clip, image = vae.encode(frames) + vae.decode(frames), vae.encode(1) + vae.decode(1)
    images = config.image_steps * config.image_batch_size
    clips = (config.steps - config.image_steps) * config.batch_size
    return Row(
        stage="train_vae",
        work=steps_in_words(config.steps),
        flops=3 * (images * image + clips * clip) + config.held_out_clips * clip,
        memory=vae.parameters * (TRAINED if config.steps else SINGLE),
        disk=SINGLE * vae.parameters,
        network=SINGLE * vae.parameters if config.init.hub else 0.0,
    )
