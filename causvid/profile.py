"""Define the keys and types of a whole params file, which every profile has.

The code that reads a section also defines the dataclass of the section. This file only lists these dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causvid import params
from causvid.compute.parallel import Compute
from causvid.compute.precision import Precision
from causvid.data.resampling.config import ResampleConfig
from causvid.data.sources.config import DownloadConfig
from causvid.data.stores.config import PackConfig
from causvid.diffusion.schedule import ScheduleConfig
from causvid.evaluation.config import EvaluateConfig, LatencyConfig
from causvid.harness.tracking import Watch
from causvid.methods.dmd.config import DmdConfig
from causvid.methods.ode_init.config import OdeConfig
from causvid.methods.teacher.config import TeacherConfig
from causvid.methods.vae.config import VaeConfig
from causvid.preparation.latents.config import LatentConfig
from causvid.preparation.ode_pairs.config import OdePairConfig
from causvid.preparation.prompts.config import PromptConfig
from causvid.preparation.samples.config import SampleConfig
from causvid.reporting.config import ReportConfig
from causvid.runtime.shapes import VideoShape


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Params section ``model``.

    Attributes:
        vae: Config of diffusers' AutoencoderKLWan.
        transformer: Config of diffusers' WanTransformer3DModel, which teacher, critic and student share.
        text_encoder: Config of transformers' UMT5EncoderModel.
        text_tokens: Number of tokens to which prompts are padded.
        frames_per_block: Number of latent frames that the causal teacher and the student generate together; None = the
            whole clip, so that both models are bidirectional.
        precision: Precision of the matrix products.
    """

    vae: dict[str, Any]
    transformer: dict[str, Any]
    text_encoder: dict[str, Any]
    text_tokens: int
    frames_per_block: int | None
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The content of a params file. Each attribute is the section with the same name."""

    profile: str
    seed: int
    compute: Compute
    watch: Watch
    video: VideoShape
    model: ModelConfig
    schedule: ScheduleConfig
    download: DownloadConfig
    resample: ResampleConfig
    train_vae: VaeConfig
    encode_prompts: PromptConfig
    extract_latents: LatentConfig
    pack_lmdb: PackConfig
    train_teacher: TeacherConfig
    train_causal_teacher: TeacherConfig
    generate_ode_pairs: OdePairConfig
    train_ode_init: OdeConfig
    train_dmd: DmdConfig
    sample: SampleConfig
    evaluate: EvaluateConfig
    measure_latency: LatencyConfig
    report: ReportConfig

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Profile:
        """Build the profile from the content of a params file.

        Raises:
            ValueError: Keys are missing or unknown, or values are wrong. The message names all wrong keys.
        """
        return params.build(cls, values, name="")


PATHS = dict(params.paths_in(Profile, ""))
