"""Initial weights are read from a folder or from a revision on the hub, or are random."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from causvid.training.pretrained import Init


def folder_init(folder: Path) -> Init:
    return Init(folder=folder, hub=None, revision=None)


def config_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_hub_model_needs_its_commit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="init.hub is org/wan without init.revision; name the commit"):
        Init(folder=tmp_path, hub="org/wan", revision=None)


def test_a_folder_holds_a_pipeline_or_a_model_or_no_model(tmp_path: Path) -> None:
    inside = config_in(tmp_path / "pipeline" / "vae")
    assert folder_init(tmp_path / "pipeline").locate("vae") == inside
    alone = config_in(tmp_path / "alone")
    assert folder_init(alone).locate("vae") == alone
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "README.md").write_text("nothing here")
    assert folder_init(tmp_path / "scratch").locate("vae") is None
    assert folder_init(tmp_path / "does not exist").locate("vae") is None
    default = Path("data/checkpoints/teacher")
    assert folder_init(tmp_path / "scratch").source("vae", default=default) == "data/checkpoints/teacher"
    assert folder_init(alone).source("vae", default=default) == alone.as_posix()


def test_one_component_of_a_hub_repository_is_downloaded_at_its_commit(
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
    assert init.source("transformer", default=tmp_path) == init.hub
    assert asked == [("org/wan", "0fad780a", ["transformer/*"])]
    with pytest.raises(
        ValueError, match=r"init.hub is org/wan, which has no folder vae/ with a config.json at revision 0fad780a"
    ):
        init.locate("vae")


# --- folders without the component ------------------------------------------------------------------------------------


def files_in(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "subfolder"),
    [
        (["captions.json"], "vae"),  # a JSON file is not a model
        (["model_index.json", "transformer/config.json"], "vae"),
        (["transformer/diffusion_pytorch_model.safetensors.index.json"], "transformer"),
        (["diffusion_pytorch_model.safetensors"], "transformer"),
        (["Wan2.1-T2V-1.3B-Diffusers/transformer/config.json"], "transformer"),
        (["text_encoder/config.json"], "tokenizer"),
        (["tokenizer/tokenizer_config.json"], "tokenizer"),
        (["model.pt"], "transformer"),
    ],
)
def test_a_folder_with_other_files_is_rejected(names: list[str], subfolder: str, tmp_path: Path) -> None:
    """Only an empty folder means random weights, because a user who adds files to a folder wants to use these files."""
    folder, marker = (
        files_in(tmp_path / "given", *names),
        "tokenizer.json" if subfolder == "tokenizer" else "config.json",
    )
    message = f"given, which holds .* but neither {marker} nor {subfolder}/{marker}; give the folder of a saved"
    with pytest.raises(ValueError, match=message):
        folder_init(folder).locate(subfolder)


@pytest.mark.parametrize("names", [["README.md"], [".gitignore"], ["README.txt", ".gitkeep"]])
def test_an_empty_folder_means_random_weights(names: list[str], tmp_path: Path) -> None:
    assert folder_init(files_in(tmp_path / "scratch", *names)).locate("vae") is None


def test_a_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match=r"init.folder is .*model.pt, which is a file; .*original_checkpoint import"):
        folder_init(tmp_path / "model.pt").locate("transformer")


def test_a_tokenizer_is_found_by_its_file(tmp_path: Path) -> None:
    both = files_in(tmp_path / "both", "config.json", "tokenizer.json")
    assert folder_init(both).locate("tokenizer") == folder_init(both).locate("text_encoder") == both
    apart = files_in(tmp_path / "apart", "config.json", "tokenizer/tokenizer.json")
    assert folder_init(apart).locate("tokenizer") == apart / "tokenizer"
