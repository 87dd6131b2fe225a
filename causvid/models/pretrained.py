"""Where weights come from: a local folder, a hub repository at a pinned revision, or nowhere (train from scratch)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Init:
    """Params entry ``init`` of a stage. A folder without a model, and no hub, means random weights.

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
        """The local folder of component ``subfolder`` (vae, transformer, …), downloaded if need be; None = scratch."""
        root = self.folder
        if self.hub is not None:
            from huggingface_hub import snapshot_download

            root = Path(snapshot_download(self.hub, revision=self.revision, allow_patterns=[f"{subfolder}/*"]))
        for folder in (root / subfolder, root):
            if any(folder.glob("*.json")):
                return folder
        if self.hub is not None:
            raise ValueError(f"init.hub {self.hub} at {self.revision} has no folder {subfolder}/ with a model in it")
        return None
