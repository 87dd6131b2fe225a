"""Where the prompts to train with come from: clips, an LMDB of ours or of the released code, or a text file."""

from __future__ import annotations

from pathlib import Path

from causvid.data.stores import latent_store
from causvid.data.stores.prompt_store import read_prompt_file
from causvid.data.videos import manifest


def read_captions(source: Path, name: str = "encode_prompts.captions") -> list[str]:
    """The prompts of ``source``, which the user gave as ``name``, in their order. ValueError for what holds none."""
    if (source / manifest.NAME).is_file():
        return [row["caption"] for row in manifest.read_manifest(source)]
    if (source / latent_store.FILE).is_file():
        return latent_store.read_prompts(source)
    if source.is_dir():
        raise ValueError(
            f"{name} is {source}, which has neither {manifest.NAME} (clips) nor {latent_store.FILE} (LMDB)"
        )
    return read_prompt_file(source, name)
