"""Read and write data/prompts: prompt embeddings and lists of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from causvid.runtime.text import prompt_list

EMBEDDINGS = "embeddings.safetensors"
INDEX = "prompts.json"


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def write_prompts(
    folder: Path,
    embeddings: Mapping[str, torch.Tensor],
    *,
    captions: Sequence[str],
    evaluation: Sequence[str],
    negative: str,
    tokens: int,
) -> None:
    """Write embeddings, and the lists of prompts that later stages need, into a new folder.

    Args:
        folder: Folder to create.
        embeddings: Maps each prompt to its embedding without padding, [number of tokens, D].
        captions: The training prompts.
        evaluation: The evaluation prompts.
        negative: The negative prompt.
        tokens: Number of tokens to which embeddings are padded when they are read.
    """
    folder.mkdir(parents=True)
    save_file({_key(prompt): tensor.contiguous() for prompt, tensor in sorted(embeddings.items())}, folder / EMBEDDINGS)
    lists = {
        "captions": prompt_list(captions, "captions"),
        "evaluation": prompt_list(evaluation, "evaluation"),
        "prompts": sorted(embeddings),
    }
    index = {**lists, "negative": negative, "tokens": tokens}
    (folder / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class PromptStore:
    """Reads embeddings from a folder that ``write_prompts`` created.

    Embeddings are padded with zeros. The transformer attends to the padding, as in the original CausVid code.

    Attributes:
        folder: The folder.
        tokens: Number of tokens after padding.
        captions: The training prompts.
        evaluation: The evaluation prompts.
        prompts: All prompts that have an embedding.
        negative: The negative prompt.

    Raises:
        ValueError: The folder has no index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder} holds no {INDEX}; run encode_prompts")
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.tokens: int = index["tokens"]
        self.captions: list[str] = index["captions"]
        self.evaluation: list[str] = index["evaluation"]
        self.prompts: list[str] = index["prompts"]
        self.negative: str = index["negative"]

    def require(self, prompts: Iterable[str], source: Path) -> None:
        """Raise ValueError if one of ``prompts``, which come from ``source``, has no embedding.

        Callers check all prompts before training, so that a missing embedding does not stop the training later.
        """
        known = set(self.prompts)
        missing = sorted({prompt for prompt in prompts if prompt not in known})
        if missing:
            raise ValueError(
                f"{self.folder} has no embedding of {len(missing)} prompts of {source}, for example {missing[0]!r}; "
                "set encode_prompts.captions or encode_prompts.more_captions to the source of these prompts"
            )

    def __call__(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """Return the embeddings of B prompts, float32 [B, tokens, D]. Raises ValueError if an embedding is missing."""
        prompts = prompt_list(prompts)
        with safe_open(self.folder / EMBEDDINGS, framework="pt") as file:
            known = set(file.keys())
            for prompt in prompts:
                if _key(prompt) not in known:
                    raise ValueError(
                        f"{self.folder} has no embedding of {prompt!r}; run encode_prompts with this prompt"
                    )
            embeddings = [file.get_tensor(_key(prompt)).float() for prompt in prompts]
        return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, self.tokens - len(x))) for x in embeddings])
