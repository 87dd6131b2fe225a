"""Find initial weights in a local folder or in a pinned revision of a hub repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MARKERS = {"tokenizer": "tokenizer.json"}  # file that identifies a component's folder; default: config.json


@dataclass(frozen=True, kw_only=True)
class Init:
    """Params entry ``init`` of a stage: the source of the initial weights.

    If ``hub`` is None and ``folder`` is missing or empty, there is no source. The stage then uses its default, which is
    another model or random weights.

    Attributes:
        folder: A diffusers folder of one component, or of a pipeline whose components are in subfolders.
        hub: Id of a repository on the hub, which replaces the folder; None = use the folder.
        revision: Commit of the repository.
    """

    folder: Path
    hub: str | None
    revision: str | None

    def __post_init__(self) -> None:
        if self.hub is not None and self.revision is None:
            raise ValueError(
                f"init.hub is {self.hub} without init.revision; name the commit, so that the run can be repeated"
            )

    def source(self, subfolder: str, *, default: Path) -> str:
        """Return the name of the source in a metrics file.

        Args:
            subfolder: Name of the component, as in ``locate``.
            default: Folder from which the stage starts if ``locate`` finds no component.

        Returns:
            The id on the hub, or the folder as it is written in the params file or on the command line.
        """
        return self.hub or (self.folder if self.locate(subfolder) else default).as_posix()

    def locate(self, subfolder: str) -> Path | None:
        """Return the local folder of a component. If ``hub`` is set, the component is downloaded first.

        Args:
            subfolder: Name of the component in a pipeline: vae, transformer, text_encoder or tokenizer.

        Returns:
            ``folder``/``subfolder`` or ``folder``, whichever contains the component. None means that there is no
            source: the folder is missing, or empty except for hidden files and READMEs.

        Raises:
            ValueError: The folder contains other files, or the repository does not have the component.
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
                f"init.hub is {self.hub}, which has no folder {subfolder}/ with a {marker} at revision {self.revision}"
            )
        _require_empty(root, subfolder, marker)
        return None


def _require_empty(root: Path, subfolder: str, marker: str) -> None:
    """Raise ValueError if ``root``, which has no component ``subfolder``, is a file or a non-empty folder."""
    if root.is_file():
        raise ValueError(
            f"init.folder is {root}, which is a file; give the folder of a saved {subfolder} ('python -m "
            "causvid.interop.original_checkpoint import' creates one from a model.pt)"
        )
    if names := [path.name for path in contents(root)]:
        raise ValueError(
            f"init.folder is {root}, which holds {', '.join(names[:3])} but neither {marker} nor "
            f"{subfolder}/{marker}; give the folder of a saved {subfolder}, or an empty folder for the default start"
        )


def contents(folder: Path) -> list[Path]:
    """List the entries of ``folder`` in order, without hidden files and READMEs; a missing folder has no entries."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if not path.name.startswith((".", "README"))]
