"""Fill the Jinja templates of HTML pages. The pages contain all files in base64 and open without a network."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

MEDIA = {".mp4": "video/mp4", ".svg": "image/svg+xml"}


def render(template: Path, **values: Any) -> str:
    """Fill a template, which can import the templates in this folder. A missing value raises an error."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template.name).render(data_uri=data_uri, **values)


def data_uri(path: Path) -> str:
    """Return the bytes of a file as a data URI."""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
