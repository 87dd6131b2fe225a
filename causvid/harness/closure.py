"""Find the modules of this repository that a stage imports, directly or indirectly, in the source text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("causvid", "stages")
# A change of these files cannot change the outputs of a stage, and must not cause stages to run again for days.
NEUTRAL = frozenset(
    f"causvid/{name}.py"
    for name in (
        "consistency",
        "costs",
        "methods/previews",
        "models/causal_wan",
        "params",
        "plan",
        "profile",
        "repro",
        "speed",
    )
)
NEUTRAL_FOLDER = "causvid/harness/"


def is_neutral(name: str) -> bool:
    """Return whether the outputs of stages never depend on the file ``name`` (posix path relative to the root)."""
    return name in NEUTRAL or name.startswith(NEUTRAL_FOLDER)


def import_closure(module: Path, root: Path) -> set[str]:
    """Return the source files that determine the result of ``module``.

    Args:
        module: Path of a module.
        root: Root of the repository.

    Returns:
        Paths relative to ``root`` of ``module`` and of all modules of this repository that ``module`` imports, without
        neutral modules and without empty files (package markers).
    """
    seen: set[Path] = set()
    todo = [module]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if not is_neutral(path.relative_to(root).as_posix()):
            todo.extend(_imports(path, root) if path.suffix == ".py" else ())
            # A template is part of the module or template that names it.
            todo.extend(file for file in path.parent.glob("*.jinja") if file.name in path.read_text())
    names = {path.relative_to(root).as_posix() for path in seen if path.stat().st_size}
    return {name for name in names if not is_neutral(name)}


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
