"""The import closure of a stage contains the files whose edit reruns the stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from causvid.harness.closure import import_closure


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a repository with one stage, three imported modules (one imported in a function), and a neutral module."""
    files = {
        "stages/__init__.py": "",
        "stages/toy.py": "import torch\nfrom causvid.models.net import Net\nimport causvid.harness.tracking\n",
        "causvid/__init__.py": "",
        "causvid/models/__init__.py": "",
        "causvid/models/net.py": "def f():\n    from causvid.models import parts\n    import causvid.runtime.shapes as s\n",
        "causvid/models/parts.py": "from causvid.models.net import f  # a circle\n",
        "causvid/models/unused.py": "x = 1\n",
        "causvid/runtime/shapes.py": '"""from causvid.models import unused"""\n',
        "causvid/runtime/__init__.py": "",
        "causvid/harness/tracking.py": "import causvid.models.unused\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_closure_has_direct_lazy_and_circular_imports_but_no_neutral_ones(tree: Path) -> None:
    closure = import_closure(tree / "stages" / "toy.py", tree)
    assert closure == {"stages/toy.py", "causvid/models/net.py", "causvid/models/parts.py", "causvid/runtime/shapes.py"}


def test_an_init_file_with_code_is_in_the_closure(tree: Path) -> None:
    (tree / "causvid" / "models" / "__init__.py").write_text("x = 1\n")
    assert "causvid/models/__init__.py" in import_closure(tree / "stages" / "toy.py", tree)


def test_templates_that_a_module_or_a_template_names_are_in_the_closure(tree: Path) -> None:
    folder = tree / "causvid" / "models"
    (folder / "net.py").write_text('PAGE = "page.html.jinja"\n')
    (folder / "page.html.jinja").write_text('{% import "shared.html.jinja" as shared %}')
    (folder / "shared.html.jinja").write_text("text")
    (folder / "other.html.jinja").write_text("text")
    found = {Path(name).name for name in import_closure(tree / "stages" / "toy.py", tree) if name.endswith(".jinja")}
    assert found == {"page.html.jinja", "shared.html.jinja"}
