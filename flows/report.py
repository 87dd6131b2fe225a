"""The report as an artifact on Prefect's page."""

from __future__ import annotations

import base64
import mimetypes
import re
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

IMAGE_LIMIT = 1_000_000  # bytes; Prefect keeps artifacts in its database


def show_report(root: Path) -> None:
    """Show ``root``/reports/report.md, if there is one."""
    report = root / "reports" / "report.md"
    if report.is_file():
        create_markdown_artifact(key="report", markdown=inline_images(report.read_text("utf-8"), report.parent))


def inline_images(markdown: str, folder: Path) -> str:
    """``markdown`` with its image files (relative to ``folder``) as data: Prefect's page cannot open our files."""

    def inline(match: re.Match[str]) -> str:
        path = folder / match["path"]
        if not path.is_file() or path.stat().st_size > IMAGE_LIMIT:
            return match[0]
        data = base64.b64encode(path.read_bytes()).decode()
        return f"![{match['text']}](data:{mimetypes.guess_type(path)[0]};base64,{data})"

    return re.sub(r"!\[(?P<text>[^]]*)\]\((?P<path>[^):]+)\)", inline, markdown)
