"""data/prompts (one embedding per distinct prompt, the evaluation list, the negative prompt), and files of prompts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from causvid.runtime import text
from causvid.runtime.text import prompt_list

EMBEDDINGS = "embeddings.safetensors"
INDEX = "prompts.json"


def read_prompt_file(path: Path, name: str) -> list[str]:
    """The non-blank lines of ``path``, which the user gave as ``name``. LF, CRLF and a lone CR end a line.

    Raises:
        ValueError: When there is no such file, when it holds no prompts, and when a line is not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{name} is {path}, which does not exist")
    lines = re.split(r"\r\n?|\n", text.decode(path.read_bytes(), f"{name} is {path}, which"))
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{name} is {path}, which holds no prompts")
    return prompts


def require_tokens(tokens: int) -> int:
    """Return ``tokens``, the length to which prompts are padded. Raises ValueError if it is below 1."""
    if tokens < 1:
        raise ValueError(
            f"model.text_tokens is {tokens}; a prompt needs 1 token at least: set it to the length of the longest "
            "prompt, for example 12 for the toy world or 512 for Wan2.1"
        )
    return tokens


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
    """Write embeddings [its tokens, D] by prompt text, and the lists that later stages need."""
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
    """Reads them, padded with zeros to ``tokens`` (padding is attended to, as in the released code)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder} holds no {INDEX}; run the stage encode_prompts")
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.tokens: int = index["tokens"]
        self.captions: list[str] = index["captions"]
        self.evaluation: list[str] = index["evaluation"]
        self.prompts: list[str] = index["prompts"]
        self.negative: str = index["negative"]

    def require(self, prompts: Iterable[str], source: Path) -> None:
        """Raise ValueError when a prompt of ``source`` was not encoded: before training, not when its turn comes."""
        known = set(self.prompts)
        missing = sorted({prompt for prompt in prompts if prompt not in known})
        if missing:
            raise ValueError(
                f"{self.folder} has no embedding of {len(missing)} prompts of {source}, as {missing[0]!r}; name where "
                "they stand as encode_prompts.captions or encode_prompts.more_captions"
            )

    def __call__(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """Embeddings [B, tokens, D] of B prompts, float32. Raises ValueError naming a prompt that was not encoded."""
        prompts = prompt_list(prompts)
        with safe_open(self.folder / EMBEDDINGS, framework="pt") as file:
            known = set(file.keys())
            for prompt in prompts:
                if _key(prompt) not in known:
                    raise ValueError(f"{self.folder} has no embedding of {prompt!r}; run encode_prompts with it")
            found = [file.get_tensor(_key(prompt)).float() for prompt in prompts]
        return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, self.tokens - len(x))) for x in found])
