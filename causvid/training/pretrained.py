"""Where weights come from: a local folder, a hub repository at a pinned revision, or nowhere (train from scratch)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MARKERS = {"tokenizer": "tokenizer.json"}  # a component is the folder with this file; the others have a config.json


@dataclass(frozen=True, kw_only=True)
class Init:
    """Params entry ``init`` of a stage. An absent folder, or an empty one, and no hub mean random weights.

    folder: a diffusers folder (with or without the subfolders of a pipeline); hub: repository id; revision: its commit.
    """

    folder: Path
    hub: str | None
    revision: str | None

    def __post_init__(self) -> None:
        if self.hub is not None and self.revision is None:
            raise ValueError(
                f"init.hub is {self.hub} without init.revision; name the commit, or the run cannot be repeated"
            )

    def locate(self, subfolder: str) -> Path | None:
        """Return the local folder of a component, which is downloaded first if ``hub`` is set.

        Args:
            subfolder: The component's name in a pipeline: vae, transformer, text_encoder or tokenizer.

        Returns:
            ``folder``/``subfolder`` or ``folder`` itself, whichever holds the component. None means random weights: the
            folder does not exist or is empty except for a README.

        Raises:
            ValueError: If the folder holds other files, or the repository has no such component.
        """
        root = self.folder
        if self.hub is not None:
            from huggingface_hub import snapshot_download

            root = Path(snapshot_download(self.hub, revision=self.revision, allow_patterns=[f"{subfolder}/*"]))
        marker = MARKERS.get(subfolder, "config.json")
        for folder in (root / subfolder, root):
            if (folder / marker).is_file():
                return folder
        if self.hub is not None:
            raise ValueError(
                f"init.hub {self.hub} at {self.revision} has no folder {subfolder}/ with a model in it ({marker})"
            )
        _require_empty(root, subfolder, marker)
        return None


def _require_empty(root: Path, subfolder: str, marker: str) -> None:
    """Raise ValueError if ``root``, which has no component ``subfolder``, is a file or a folder that is not empty."""
    if root.is_file():
        raise ValueError(
            f"init.folder is {root}, which is a file; give the folder of a saved {subfolder} ('python -m "
            "causvid.interop.original_checkpoint import' makes one of a model.pt)"
        )
    if found := [path.name for path in contents(root)]:
        raise ValueError(
            f"init.folder is {root}, which holds {', '.join(found[:3])} but neither {marker} nor "
            f"{subfolder}/{marker}; give the folder of a saved {subfolder}, or an empty one to train from scratch"
        )


def contents(folder: Path) -> list[Path]:
    """Return the entries of ``folder``, sorted, without hidden files and READMEs; none if there is no such folder."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if not path.name.startswith((".", "README"))]
