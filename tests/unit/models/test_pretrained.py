"""Where weights come from: folders, hub revisions, nowhere."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from causvid.models.pretrained import Init


def folder_init(folder: Path) -> Init:
    return Init(folder=folder, hub=None, revision=None)


def config_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_hub_model_needs_its_commit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="init.hub is org/wan without init.revision; name the commit"):
        Init(folder=tmp_path, hub="org/wan", revision=None)


def test_a_pipeline_folder_a_model_folder_and_nothing(tmp_path: Path) -> None:
    inside = config_in(tmp_path / "pipeline" / "vae")
    assert folder_init(tmp_path / "pipeline").locate("vae") == inside
    alone = config_in(tmp_path / "alone")
    assert folder_init(alone).locate("vae") == alone
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "README.md").write_text("nothing here")
    assert folder_init(tmp_path / "scratch").locate("vae") is None
    assert folder_init(tmp_path / "does not exist").locate("vae") is None


def test_a_hub_model_is_fetched_at_its_commit_and_only_the_part_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    init = Init(folder=tmp_path / "ignored", hub="org/wan", revision="0fad780a")
    expected = config_in(tmp_path / "transformer")
    assert init.locate("transformer") == expected
    assert asked == [("org/wan", "0fad780a", ["transformer/*"])]
    with pytest.raises(ValueError, match=r"org/wan at 0fad780a has no folder vae/"):
        init.locate("vae")
