"""The report as an artifact on Prefect's page."""

from __future__ import annotations

import base64
import mimetypes
import re
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

SHEET = "reports/figures/samples.png"  # what the report stage draws of the samples
IMAGE_LIMIT = 1_000_000  # bytes; Prefect keeps artifacts in its database


def show_report(root: Path) -> None:
    """Show ``root``/reports/report.md and the sheet of samples, if they are there."""
    report, sheet = root / "reports" / "report.md", root / SHEET
    if report.is_file():
        create_markdown_artifact(key="report", markdown=inline_images(report.read_text("utf-8"), report.parent))
    if sheet.is_file() and sheet.stat().st_size <= IMAGE_LIMIT:
        # Not an image artifact: Prefect's page prints its URL, which holds the picture, in one line.
        create_markdown_artifact(
            key="samples", markdown=f"![The same prompts and noise, by every model]({data_url(sheet)})"
        )


def data_url(path: Path) -> str:
    """The file as a URL that holds it: Prefect's page cannot open our files."""
    return f"data:{mimetypes.guess_type(path)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def inline_images(markdown: str, folder: Path) -> str:
    """``markdown`` with its image files (relative to ``folder``) in it."""

    def inline(match: re.Match[str]) -> str:
        path = folder / match["path"]
        if not path.is_file() or path.stat().st_size > IMAGE_LIMIT:
            return match[0]
        return f"![{match['text']}]({data_url(path)})"

    return re.sub(r"!\[(?P<text>[^]]*)\]\((?P<path>[^):]+)\)", inline, markdown)
