"""Generate videos with bidirectional and causal models, in many steps or in few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import causvid.models.causal_wan  # noqa: F401  diffusers only loads classes of imported modules
from causvid.compute import device as devices
from causvid.diffusion.schedule import ScheduleConfig
from causvid.diffusion.velocity import conditional, guided
from causvid.record import StudentRecord, TeacherRecord, settings
from causvid.runtime.shapes import LatentShape, VideoShape
from causvid.sampling.arguments import require_one_batch
from causvid.sampling.autoregressive import generate_blocks, solve_blocks
from causvid.sampling.few_step import few_step
from causvid.sampling.ode_solver import solve_ode
from causvid.wan.formats.configs import strides, token_shape
from causvid.wan.formats.weight_files import require_weights
from causvid.wan.text_encoder import TextEncoder, embed
from causvid.wan.transformer.lora_files import check_lora_files, without_fused_adapters
from causvid.wan.transformer.wan import CausalTransformer, Transformer, load_transformer
from causvid.wan.vae.vae import StreamingDecoder, Vae, decode, encode, load_vae, to_uint8

# Maps (known first latent frames or None, sink frames or None) to latent blocks.
Blocks = Callable[[torch.Tensor | None, int | None], Iterator[torch.Tensor]]


class CausVidPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline of a transformer, a VAE and a schedule. The default schedule is that of the original CausVid code.

    The methods need prompt embeddings [B, L, D]. A pipeline with a text encoder computes embeddings with ``embed``. The
    config contains the size of the training clips (``height``, ``width``, ``frames``, ``fps``) and ``precision``, the
    data type in which the weights should run.
    """

    _optional_components = ["text_encoder", "tokenizer"]
    transformer: Transformer

    def __init__(
        self,
        vae: Vae,
        transformer: Transformer,
        text_encoder: TextEncoder | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        shift: float = 8.0,
        solver_steps: int = 50,
        denoising_timesteps: list[float] | tuple[float, ...] = (1000, 757, 522),
        context_timestep: float = 0.0,
        text_tokens: int = 512,
        height: int = 480,
        width: int = 832,
        frames: int = 81,
        fps: int = 16,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if isinstance(denoising_timesteps, str) or not isinstance(denoising_timesteps, Sequence):
            raise ValueError(
                f"denoising_timesteps is {denoising_timesteps!r}; expected a sequence of numbers: (1000, 757, 522)"
            )
        self.register_modules(vae=vae, transformer=transformer, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(
            shift=shift,
            solver_steps=solver_steps,
            denoising_timesteps=list(denoising_timesteps),
            context_timestep=context_timestep,
            text_tokens=text_tokens,
            height=height,
            width=width,
            frames=frames,
            fps=fps,
            precision=precision,
        )
        self.schedule.columns()  # raises ValueError if a denoising timestep is not a timestep of the solver

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. Check that a component has all weights, and let a transformer check LoRA files."""
        if isinstance(value, torch.nn.Module):
            require_weights(name, value)
        if isinstance(value, Transformer):
            check_lora_files(value)
        super().__setattr__(name, value)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the pipeline as a diffusers folder. The saved weights include fused adapters.

        Args:
            save_directory: The folder.
            *args: As in the method of diffusers.
            **kwargs: As in the method of diffusers.

        Raises:
            ValueError: The transformer has a LoRA adapter that is not fused.
        """
        adapted = self.transformer
        self.transformer = without_fused_adapters(adapted)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.transformer = adapted

    @property
    def video(self) -> VideoShape:
        """Size of the training clips."""
        config = self.config
        return VideoShape(height=config.height, width=config.width, frames=config.frames, fps=config.fps)

    @property
    def schedule(self) -> ScheduleConfig:
        """Schedule in the pipeline's config."""
        config = self.config
        return ScheduleConfig(
            shift=config.shift,
            solver_steps=config.solver_steps,
            denoising_timesteps=tuple(config.denoising_timesteps),
            context_timestep=config.context_timestep,
        )

    @property
    def is_causal(self) -> bool:
        """Whether the transformer is causal and streams blocks. A bidirectional one denoises all frames together."""
        return isinstance(self.transformer, CausalTransformer)

    def latent_shape(self, video: VideoShape) -> LatentShape:
        """Return the latent size of ``video``. Raises ValueError if the VAE or the transformer does not support it."""
        return token_shape(self.vae.config, self.transformer.config, video)

    def embed(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """Embed prompts with the pipeline's text encoder.

        Args:
            prompts: One prompt, or a sequence of at least one prompt.

        Returns:
            Embeddings [B, L, D], padded with zeros to L = ``text_tokens``; B is 1 for a single prompt.

        Raises:
            ValueError: There is no text encoder, or ``prompts`` is empty or contains an element that is not a string.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder and tokenizer; give embeddings, or load it with both")
        tokens = self.config.text_tokens
        states = embed(self.text_encoder, self.tokenizer, prompts, tokens)
        return torch.stack([torch.nn.functional.pad(x.float(), (0, 0, 0, tokens - len(x))) for x in states])

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: torch.Tensor,
        video: VideoShape,
        generators: Sequence[torch.Generator],
        negative_embeds: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        *,
        few_steps: bool,
    ) -> torch.Tensor:
        """Generate a batch of clips.

        Args:
            prompt_embeds: Embeddings [B, L, D].
            video: Size of a clip.
            generators: One random generator for each video, so that a video does not depend on its batch.
            negative_embeds: Embeddings of the negative prompt [1 or B, L, D]; None = zeros. Few steps do not use them.
            guidance_scale: Guidance scale of the many steps. Few steps do not use it; distillation included guidance.
            few_steps: Whether the model is a student and uses the schedule's few steps, not the solver's many steps.

        Returns:
            uint8 frames [B, F, H, W, 3].
        """
        if self.is_causal:
            stream = self.stream(
                prompt_embeds, video, generators, None, negative_embeds, guidance_scale, few_steps=few_steps
            )
            return torch.cat(list(stream), dim=1)
        text_dim = self.transformer.config.text_dim
        require_one_batch(prompt_embeds, generators, negative_embeds, text_dim=text_dim)
        sizes = self.latent_shape(video).sizes
        noise = self._noise(sizes, generators)
        if few_steps:
            student = conditional(self.transformer, prompt_embeds.to(noise.device))
            steps = self.schedule.denoising_timesteps
            latents = few_step(student, noise, steps, lambda: self._noise(sizes, generators))
            return to_uint8(decode(self.vae, latents))
        negative = self._negative(prompt_embeds, negative_embeds)
        velocity = guided(self.transformer, prompt_embeds.to(noise.device), negative, guidance_scale)
        latents = solve_ode(velocity, noise, self.schedule.grid.sigmas(self.config.solver_steps))[:, 0]
        return to_uint8(decode(self.vae, latents))

    @torch.no_grad()
    def stream(
        self,
        prompt_embeds: torch.Tensor,
        video: VideoShape,
        generators: Sequence[torch.Generator],
        sink_frames: int | None = None,
        negative_embeds: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        *,
        few_steps: bool,
    ) -> Iterator[torch.Tensor]:
        """Yield the frames of each block, uint8 [B, f, H, W, 3], as soon as the block is denoised and decoded.

        The arguments are those of ``__call__``. With ``sink_frames``, the stream is endless and needs constant memory:
        the model attends to the first ``sink_frames`` latent frames (a multiple of a block, or 0) and to the latest
        latent frames, in total to as many as a clip of size ``video`` has.
        """
        blocks = self._sampler(prompt_embeds, video, generators, negative_embeds, guidance_scale, few_steps=few_steps)
        decoder = StreamingDecoder(self.vae)
        for block in blocks(None, sink_frames):
            yield to_uint8(decoder(block).float())

    def rollout(
        self,
        prompt_embeds: torch.Tensor,
        video: VideoShape,
        generators: Sequence[torch.Generator],
        frames: int,
        negative_embeds: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        *,
        few_steps: bool,
    ) -> Iterator[torch.Tensor]:
        """Generate a video that is longer than the training clips, window by window, in constant memory.

        Windows of ``video.frames`` overlap by one block. A window starts with the latent frames of the previous
        window's last block. The first latent frame of this block is encoded again from a single decoded frame, because
        the first latent frame of a window represents one frame and not several. The long-video script of the original
        CausVid code does the same. The positions start at 0 in every window.

        Args:
            prompt_embeds: Embeddings [B, L, D].
            video: Size of a window.
            generators: One random generator for each video.
            frames: Number of frames of the whole video.
            negative_embeds: As in ``__call__``.
            guidance_scale: As in ``__call__``.
            few_steps: As in ``__call__``.

        Returns:
            An iterator over uint8 frames [B, f, H, W, 3] in CPU memory, ``frames`` in total. Each window is computed
            when the iterator reaches it; ``torch.cat(list(...), dim=1)`` is the complete video.

        Raises:
            ValueError: The model is bidirectional, a block is as long as a window, or ``frames`` fits into one block.
        """
        blocks = self._sampler(prompt_embeds, video, generators, negative_embeds, guidance_scale, few_steps=few_steps)
        overlap = strides(self.vae.config).temporal * (self.transformer.config.frames_per_block - 1) + 1
        if overlap >= video.frames:
            raise ValueError("a rollout needs clips of several blocks, but model.frames_per_block is the whole clip")
        if frames <= overlap:
            raise ValueError(f"a rollout of {frames} frames is not longer than its first block of {overlap}; use more")
        return self._windows(blocks, frames, overlap)

    @torch.no_grad()
    def _windows(self, blocks: Blocks, frames: int, overlap: int) -> Iterator[torch.Tensor]:
        """Yield the frames of ``rollout``. ``overlap`` is the number of frames in the first block of a window."""
        known = self.transformer.config.frames_per_block - 1  # latent frames that the next window uses unchanged
        context: torch.Tensor | None = None
        while frames > 0:
            latents = torch.cat(list(blocks(context, None)), dim=2)
            pixels = decode(self.vae, latents)
            shown = to_uint8(pixels[:, :, : frames if frames <= pixels.shape[2] else -overlap]).cpu()
            frames -= shown.shape[1]
            if frames:
                first = encode(self.vae, pixels[:, :, -overlap : -overlap + 1 or None])
                context = torch.cat([first, latents[:, :, latents.shape[2] - known :]], dim=2)
            del latents, pixels  # frees memory while the caller uses the frames
            yield shown

    def _sampler(
        self,
        prompt_embeds: torch.Tensor,
        video: VideoShape,
        generators: Sequence[torch.Generator],
        negative_embeds: torch.Tensor | None,
        guidance_scale: float,
        *,
        few_steps: bool,
    ) -> Blocks:
        """Return the sampler of one batch. Raises ValueError for a bidirectional model."""
        if not self.is_causal:
            raise ValueError(
                "streaming needs a causal model, but this pipeline has a bidirectional one; call the pipeline instead"
            )
        text_dim = self.transformer.config.text_dim
        require_one_batch(prompt_embeds, generators, negative_embeds, text_dim=text_dim)
        model, schedule, text = self.transformer, self.schedule, prompt_embeds.to(self.device)
        negative = self._negative(prompt_embeds, negative_embeds)
        channels, frames, height, width = self.latent_shape(video).sizes

        def draw(k: int) -> torch.Tensor:
            return self._noise((channels, k, height, width), generators)

        def blocks(context: torch.Tensor | None, sink_frames: int | None) -> Iterator[torch.Tensor]:
            endless = sink_frames is not None
            noise = map(draw, repeat(model.config.frames_per_block)) if endless else draw(frames)
            window, sink = frames if endless else None, sink_frames or 0
            if few_steps:
                return generate_blocks(model, text, noise, schedule, draw, context, window=window, sink=sink)
            return solve_blocks(
                model, text, negative, guidance_scale, noise, schedule, context, window=window, sink=sink
            )

        return blocks

    def _negative(self, prompt_embeds: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        negative = given if given is not None else torch.zeros_like(prompt_embeds[:1])
        return negative.to(self.device)

    def _noise(self, size: tuple[int, ...], generators: Sequence[torch.Generator]) -> torch.Tensor:
        noise: torch.Tensor = randn_tensor((len(generators), *size), generator=list(generators), device=self.device)
        return noise.float()


def build_pipeline(
    transformer: Transformer,
    vae: Vae,
    record: TeacherRecord | StudentRecord,
    schedule: ScheduleConfig,
    *,
    text_encoder: TextEncoder | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> CausVidPipeline:
    """Build a pipeline with the settings of a training record.

    Args:
        transformer: The transformer, a teacher or a student.
        vae: The VAE that encodes and decodes the transformer's latents.
        record: Training record of the transformer.
        schedule: Schedule for a teacher, whose record has no solver steps. For a student, the training record of the
            student contains the schedule.
        text_encoder: The text encoder; without one, the pipeline accepts embeddings only.
        tokenizer: The tokenizer of the text encoder.
    """
    return CausVidPipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        **settings(record, schedule),
    )


def load_pipeline(
    checkpoint: Path, vae: Path, record: TeacherRecord | StudentRecord, schedule: ScheduleConfig
) -> CausVidPipeline:
    """Load a trained transformer and a VAE onto the device of this process, and build their pipeline.

    Args:
        checkpoint: Folder of the transformer.
        vae: Folder of the VAE.
        record: Training record of the transformer.
        schedule: As in ``build_pipeline``.

    Raises:
        ValueError: The transformer was trained on latents of another VAE.
    """
    record.require_vae(checkpoint, vae)
    dtype = record.precision.dtype
    pipeline = build_pipeline(load_transformer(checkpoint, dtype).eval(), load_vae(vae, dtype), record, schedule)
    pipeline.to(devices.pick())
    return pipeline
