"""Read the training prompts from clips, from an LMDB or from a text file."""

from __future__ import annotations

from pathlib import Path

from causvid.data.prompt_file import read_prompt_file
from causvid.data.stores import latent_store
from causvid.data.videos import manifest


def read_captions(source: Path, name: str = "encode_prompts.captions") -> list[str]:
    """Return the training prompts of ``source`` in their stored order.

    Args:
        source: A folder of clips, an LMDB of this project or of the original CausVid code, or a text file with one
            prompt per line.
        name: Name of the setting that holds ``source``, for error messages.

    Raises:
        ValueError: ``source`` has another format, is damaged or holds no prompts.
    """
    if (source / manifest.NAME).is_file():
        return [row["caption"] for row in manifest.read_manifest(source)]
    if (source / latent_store.FILE).is_file():
        return latent_store.read_prompts(source)
    if source.is_dir():
        raise ValueError(
            f"{name} is {source}, which has neither {manifest.NAME} (clips) nor {latent_store.FILE} (LMDB); name a "
            "folder of clips, the folder of an LMDB, or a text file"
        )
    return read_prompt_file(source, name)
