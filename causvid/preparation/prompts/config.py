"""Params of the stage ``encode_prompts``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from causvid.training.pretrained import Init


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Params section ``encode_prompts``.

    Attributes:
        init: Weights of the text encoder and its tokenizer.
        captions: Source of the training prompts: a folder of clips, an LMDB of this project or of the original CausVid
            code, or a text file with one prompt per line.
        more_captions: Source of further prompts to embed, of the same kinds as ``captions``. An empty folder means that
            there are no further prompts.
        evaluation_prompts: Text file with one prompt per line.
        negative_prompt: Prompt for the unconditional velocity in guidance; may be "".
    """

    init: Init
    captions: Path
    more_captions: Path
    evaluation_prompts: Path
    negative_prompt: str
