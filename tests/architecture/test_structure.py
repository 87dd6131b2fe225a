"""Structure is tested like behaviour: imports, thin stages, params, deps in dvc.yaml, the map of the files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid import params
from causvid.harness.closure import import_closure, is_neutral
from tests.architecture.dependencies import is_code, needless, required

ROOT = Path(__file__).resolve().parents[2]
PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
STANZAS = {name: stanza.get("do", stanza) for name, stanza in PIPELINE.items()}
ABLATION: dict[str, Any] = YAML(typ="safe").load(ROOT / "ablation" / "dvc.yaml")["stages"]
ABLATED = {name: stanza.get("do", stanza) for name, stanza in ABLATION.items()}
# Of both pipelines, those that run a stage module: by where they stand, the module and the stanza.
EVERY = {f"dvc.yaml: {name}": (name, stanza) for name, stanza in STANZAS.items()} | {
    f"ablation/dvc.yaml: {name}": (found[1], stanza)
    for name, stanza in ABLATED.items()
    if (found := re.match(r"exec python -m stages\.(\w+) ", stanza["cmd"]))
}
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def test_the_same_name_for_stage_module_and_params_section() -> None:
    sections = YAML(typ="safe").load(ROOT / "profiles" / "laptop.yaml")
    assert sorted([*PIPELINE, "table4"]) == STAGES  # of the ablation alone; it has no numbers of its own
    assert set(PIPELINE) - {"checksums"} <= set(sections)


@pytest.mark.parametrize("where", EVERY)
def test_deps_are_computed_from_imports(where: str) -> None:
    stage, stanza = EVERY[where]
    declared = [dep for dep in stanza["deps"] if is_code(dep)]
    assert declared == required(stage), f"{where}: run 'python -m tests.architecture.dependencies'"


def test_few_edits_rerun_a_stage_without_need() -> None:
    """Dependencies on folders are short, and some of them cover a file that the stage does not import."""
    assert sum(len(needless(stage)) for stage in STAGES) <= 12


@pytest.mark.parametrize("where", [where for where, (name, _) in EVERY.items() if name != "checksums"])
def test_a_stage_declares_the_params_it_reads(where: str) -> None:
    stage, stanza = EVERY[where]
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    reads = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "READS"
    )
    file = re.search(r" --params (\S+)", stanza["cmd"])
    declared = next(keys[file[1]] for keys in stanza["params"] if file[1] in keys) if file else stanza["params"]
    assert list(reads) == [key for key in declared if isinstance(key, str)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_thin(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    assert len(text.splitlines()) <= 75
    assert "import torch" not in text, "tensors belong to the package"


@pytest.mark.parametrize("where", EVERY)
def test_a_stage_runs_as_its_own_process_with_its_options(where: str) -> None:
    stage, stanza = EVERY[where]
    assert stanza["cmd"].startswith(f"exec python -m stages.{stage} ")
    assert set(stanza["meta"]) == {"gpu", "timeout", "retries"}
    assert "compute" not in str(stanza.get("params")), "workers must not rerun a stage"


def test_all_profiles_have_the_same_keys() -> None:
    assert {"laptop", "smoke", "wan-1.3b"} <= set(PROFILES)
    for profile in PROFILES:
        params.read(ROOT / "profiles" / f"{profile}.yaml")  # raises, naming the key


def test_every_module_reaches_a_stage() -> None:
    """Nothing lies around: each file of the package is used by a stage or is a command of its own."""
    reached = set().union(*(import_closure(ROOT / "stages" / f"{stage}.py", ROOT) for stage in STAGES))
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "causvid").rglob("*.py") if p.stat().st_size}
    commands = {
        "causvid/evaluation/vbench_runner.py",
        "causvid/generate/__init__.py",
        *import_closure(ROOT / "causvid" / "generate" / "command.py", ROOT),
        *import_closure(ROOT / "causvid" / "comparison" / "compare.py", ROOT),
        *import_closure(ROOT / "causvid" / "interop" / "original_config.py", ROOT),
        "causvid/interop/original_lmdb.py",
    }
    assert {name for name in ours - reached - commands if not is_neutral(name)} == set()


def test_package_markers_are_empty() -> None:
    """Except those of packages that hold commands: they prepare the environment before anything reads it."""
    markers = [file for d in ("causvid", "stages", "flows") for file in (ROOT / d).rglob("__init__.py")]
    commands = [ROOT / name / "__init__.py" for name in ("causvid/generate", "stages", "flows")]
    assert sorted(file for file in markers if file.stat().st_size) == sorted(commands)


def test_only_one_file_says_cuda() -> None:
    files = [p for d in ("causvid", "stages", "flows") for p in (ROOT / d).rglob("*.py")]
    assert [p.relative_to(ROOT).as_posix() for p in files if "cuda" in p.read_text()] == ["causvid/compute/device.py"]


def test_the_model_core_needs_no_orchestration() -> None:
    """DESIGN: models, diffusion, losses, sampling and the pipeline run without Ray, DVC, Prefect, MLflow, LMDB, decord."""
    code = (
        "import sys\n"
        "blocked = ('ray', 'dvc', 'prefect', 'mlflow', 'lmdb', 'decord', 'av')\n"
        "sys.modules.update(dict.fromkeys(blocked))\n"
        "import causvid.pipeline, causvid.wan.text_encoder, causvid.methods.dmd.loss, causvid.methods.ode_init.loss\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_our_packages_are_importable_from_any_folder(tmp_path: Path) -> None:
    """A script of the user's, run by the environment's python, wherever it lies."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import causvid; print(causvid.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parents[1] == ROOT


def test_the_map_lists_every_file() -> None:
    blocks = (ROOT / "docs" / "map.md").read_text().split("<!-- tree -->")[1].split("```")[1::2]
    lines = [line for block in blocks for line in block.splitlines()[1:]]
    listed = {line.split()[0].rstrip("/") for line in lines}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = {
        name
        for name in tracked
        if name.split("/")[0] in ("causvid", "stages", "flows") and (ROOT / name).stat().st_size
    }
    missing = {
        name
        for name in files
        if not any(
            name == entry or name.startswith(f"{entry}/") for entry in listed if entry.count("/") or "." in entry
        )
    }
    assert missing == set(), "say in docs/map.md what these files are for"
    assert {entry for entry in listed if not (ROOT / entry).exists()} == set()


def test_files_and_functions_that_the_docs_name_are_there() -> None:
    """A path, and the name behind it: ``methods/dmd/loss.py`` `dmd_loss`."""
    lost = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for path, name in re.findall(r"`([\w./-]+\.(?:py|md|yaml))`(?: `([\w.]+)`)?", page.read_text()):
            if "NAME" in path:  # a file that the reader of a recipe makes
                continue
            places = (ROOT / folder / path for folder in (".", "causvid", "docs", "reports"))
            file = next((place for place in places if place.is_file()), None)
            defined = rf"^\s*(def|class) {name.split('.')[-1]}\b"
            if file is None or (name and not re.search(defined, file.read_text(), re.MULTILINE)):
                lost.append(f"{page.name}: {path} {name}".strip())
    assert lost == []
