"""Show the report as artifacts on Prefect's page."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
import subprocess
import sys
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

SHEET = "reports/figures/samples.png"  # figure of the report stage with frames of the samples
IMAGE_LIMIT = 1_000_000  # bytes; Prefect stores artifacts in its database


def show_report(root: Path) -> None:
    """Create artifacts of the headline numbers, ``root``/reports/report.md and the figure of samples, if they exist."""
    # A flow imports none of the package, so that a command selects the numbers.
    command = [sys.executable, "-m", "causvid.reporting.summary", "reports"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        get_run_logger().warning("no headline numbers: %s", done.stderr.strip().splitlines()[-1])
    elif numbers := json.loads(done.stdout):
        create_table_artifact(key="headline", table=numbers, description="The student's most important results")
    report, sheet = root / "reports" / "report.md", root / SHEET
    if report.is_file():
        create_markdown_artifact(key="report", markdown=inline_images(report.read_text("utf-8"), report.parent))
    if sheet.is_file() and sheet.stat().st_size <= IMAGE_LIMIT:
        # An image artifact is not used, because Prefect's page also prints its URL, which contains the complete image.
        create_markdown_artifact(
            key="samples", markdown=f"![The same prompts and noise, by every model]({data_url(sheet)})"
        )


def data_url(path: Path) -> str:
    """Return a data URL with the content of an image file, because Prefect's page cannot open files of the project."""
    return f"data:{mimetypes.guess_type(path)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def inline_images(markdown: str, folder: Path) -> str:
    """Replace the image files in ``markdown``, whose paths are relative to ``folder``, by data URLs."""

    def inline(match: re.Match[str]) -> str:
        path = folder / match["path"]
        if not path.is_file() or path.stat().st_size > IMAGE_LIMIT:
            return match[0]
        return f"![{match['text']}]({data_url(path)})"

    return re.sub(r"!\[(?P<text>[^]]*)\]\((?P<path>[^):]+)\)", inline, markdown)
