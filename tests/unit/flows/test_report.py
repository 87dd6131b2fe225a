"""Images of the report are embedded in Prefect's artifacts."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from flows import report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "samples.png").write_bytes(b"\x89PNG")
    (tmp_path / "figures" / "curves.svg").write_text("<svg/>")
    return tmp_path


def test_image_files_are_replaced_by_data_urls(folder: Path) -> None:
    markdown = report.inline_images(
        "# A\n![s](figures/samples.png) | ![c](figures/curves.svg)\n[page](index.html)", folder
    )
    png, svg = base64.b64encode(b"\x89PNG").decode(), base64.b64encode(b"<svg/>").decode()
    assert (
        markdown
        == f"# A\n![s](data:image/png;base64,{png}) | ![c](data:image/svg+xml;base64,{svg})\n[page](index.html)"
    )


@pytest.mark.parametrize(
    "link", ["![x](figures/none.png)", "![x](https://example.org/x.png)", "![x](data:image/png;base64,AA)"]
)
def test_links_without_a_local_file_are_not_changed(folder: Path, link: str) -> None:
    assert report.inline_images(link, folder) == link


def test_the_link_of_an_image_too_large_for_prefects_database_is_not_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "IMAGE_LIMIT", 3)
    assert report.inline_images("![s](figures/samples.png)", folder) == "![s](figures/samples.png)"
