"""Which of our own modules a module imports, directly or through others, lazily or not: read from the source text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("causvid", "stages")
# They cannot change what a stage writes into its outs: an edit here must not redo days of work.
NEUTRAL = frozenset(
    f"causvid/runtime/{name}.py"
    for name in (
        "checksums",
        "closure",
        "delivery",
        "device",
        "environment",
        "events",
        "inputs",
        "journal",
        "machine",
        "mlflow_store",
        "outbox",
        "parallel",
        "progress",
        "project",
        "recorded",
        "sender",
        "stage",
        "tracking",
        "work",
    )
) | {
    "causvid/costs.py",
    "causvid/params.py",
    "causvid/plan.py",
    "causvid/training/previews.py",
    "causvid/training/speed.py",
}


def import_closure(module: Path, root: Path) -> set[str]:
    """Paths below ``root`` (posix, relative) of ``module`` and all of our modules it reaches, less the neutral ones.

    Empty files (package markers) are left out: DVC would track them for nothing.
    """
    seen: set[Path] = set()
    todo = [module]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.relative_to(root).as_posix() not in NEUTRAL and path.suffix == ".py":
            todo.extend(_imports(path, root))
            # A template is code that the module which names it runs.
            todo.extend(file for file in path.parent.glob("*.jinja") if file.name in path.read_text())
    names = {path.relative_to(root).as_posix() for path in seen if path.stat().st_size}
    return names - NEUTRAL


def _imports(path: Path, root: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                stem = root.joinpath(*name.split("."))
                yield from (file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file())
