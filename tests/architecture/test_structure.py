"""The repository follows rules for imports, stages, params, dependencies in dvc.yaml, and the map of the files."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

from causvid import params
from causvid.harness.closure import import_closure, is_neutral
from causvid.harness.declaration import Option, Section, declared
from tests.architecture.dependencies import STAGES, needless, options_of, stage_class, stanzas

ROOT = Path(__file__).resolve().parents[2]
PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STANZAS = {name: stanza.get("do", stanza) for name, stanza in PIPELINE.items()}
# Every stage of both pipelines that runs a stage module, with its content and the content that its declaration
# requires.
EVERY = {f"{file}: {name}": (stanza, need) for file, name, _, stanza, need in stanzas()}
# Packages whose import takes a second or more, and the packages that import them.
HEAVY = (
    "accelerate", "av", "decord", "diffusers", "huggingface_hub", "lmdb", "matplotlib", "mlflow", "numpy", "pandas", "peft",
    "prefect", "ray", "safetensors", "scipy", "tokenizers", "torch", "transformers",
)  # fmt: skip
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def test_the_same_name_for_stage_module_and_params_section() -> None:
    sections = YAML(typ="safe").load(ROOT / "profiles" / "laptop.yaml")
    # only the ablation has the stage table4, which has no params section
    assert sorted([*PIPELINE, "table4"]) == STAGES
    assert set(PIPELINE) - {"checksums"} <= set(sections)


@pytest.mark.parametrize("where", EVERY)
def test_dvc_yaml_follows_from_the_declaration_of_the_stage(where: str) -> None:
    stanza, need = EVERY[where]
    outs = [out if isinstance(out, str) else next(iter(out)) for out in stanza.get("outs", [])]
    metrics = [path for it in stanza.get("metrics", []) for path in it]
    plots = [{it: {}} if isinstance(it, str) else it for it in stanza.get("plots", [])]
    axes = {path: options.get("y") for plot in plots for path, options in plot.items()}
    params = [{"params.yaml": [it]} if isinstance(it, str) else it for it in stanza.get("params", [])]
    keys = {file: [key for entry in params for key in entry.get(file, [])] for file in need.params}
    remedy = f"{where}: run 'python -m tests.architecture.dependencies', or change the stage"
    assert where.startswith("ablation") or stanza["desc"] == need.desc or not need.desc, remedy
    assert [name for name in options_of(stanza["cmd"]) if name != "params"] == need.options, remedy
    assert stanza["deps"] == need.deps, remedy
    assert keys == need.params, remedy
    assert {file for entry in params for file in entry} <= set(need.params), remedy
    assert (outs, metrics) == (need.outs, need.metrics), remedy
    assert axes == need.plots, remedy
    assert all(options["x"] == "step" for plot in plots for options in plot.values() if "y" in options)


def test_dvc_shows_only_the_headline_numbers_as_metrics() -> None:
    """Neither the key of a stage nor the other numbers in ``reports/`` are columns of ``dvc metrics show``."""
    shown = {path for stanza in STANZAS.values() for it in stanza.get("metrics", []) for path in it}
    assert shown == {"reports/summary.json", "reports/measure_latency/speeds.json"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage_class(stage)])
def test_help_explains_the_stage_and_every_option(stage: str) -> None:
    cls = stage_class(stage)
    assert cls is not None
    assert cls.name() == stage
    app = typer.Typer()
    app.command()(importlib.import_module(f"stages.{stage}").main)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}, color=False).output
    words = " ".join(shown.split())
    assert (cls.__doc__ or "") in words
    for name, _, option in declared(cls, Option):
        assert f"--{name.replace('_', '-')}" in words
        assert len(option.help) > 10
        assert option.help in words


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage_class(stage)])
def test_a_stage_can_build_its_sections_from_every_profile(stage: str, profile: str) -> None:
    file = ROOT / "profiles" / f"{profile}.yaml"
    cls = stage_class(stage)
    assert cls is not None
    for section in declared(cls, Section):
        params.section(file, section.role.name, section.type)  # this call raises an error that names the field


def test_at_most_20_files_rerun_a_stage_without_need() -> None:
    """Dependencies on folders are short. Some folders contain a file that the stage does not import."""
    assert sum(len(needless(stage)) for stage in STAGES) <= 20


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_thin(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    assert len(text.splitlines()) <= 75
    assert "import torch" not in text, "tensors belong to the package"


@pytest.mark.parametrize("where", EVERY)
def test_a_stage_runs_as_its_own_process_with_its_options(where: str) -> None:
    stanza, _ = EVERY[where]
    start = "cd .. && exec" if where.startswith("ablation/") else "exec"
    assert stanza["cmd"].startswith(f"{start} python -m stages.")
    assert set(stanza["meta"]) == {"gpu", "timeout", "retries"}
    assert "compute" not in str(stanza.get("params")), "workers must not rerun a stage"


def test_all_profiles_have_the_same_keys() -> None:
    assert {"laptop", "smoke", "wan-1.3b"} <= set(PROFILES)
    for profile in PROFILES:
        params.read(ROOT / "profiles" / f"{profile}.yaml")  # this call raises an error that names the key


def test_every_module_reaches_a_stage() -> None:
    """Every file of the package is used by a stage, or belongs to another command."""
    reached = set().union(*(import_closure(ROOT / "stages" / f"{stage}.py", ROOT) for stage in STAGES))
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "causvid").rglob("*.py") if p.stat().st_size}
    commands = {
        "causvid/evaluation/vbench_runner.py",
        "causvid/generate/__init__.py",
        *import_closure(ROOT / "causvid" / "generate" / "command.py", ROOT),
        *import_closure(ROOT / "causvid" / "comparison" / "compare.py", ROOT),
        "causvid/comparison/tries.py",
        *import_closure(ROOT / "causvid" / "interop" / "original_config.py", ROOT),
        "causvid/wan/costs.py",  # the planner uses this file and the cost.py files below
        *(f"causvid/methods/{method}/cost.py" for method in ("vae", "teacher", "ode_init")),
        "causvid/interop/original_lmdb.py",
    }
    assert {name for name in ours - reached - commands if not is_neutral(name)} == set()


def test_package_markers_are_empty() -> None:
    """Markers of packages with commands are not empty: their code prepares the environment before other imports."""
    markers = [file for d in ("causvid", "stages", "flows") for file in (ROOT / d).rglob("__init__.py")]
    commands = [ROOT / name / "__init__.py" for name in ("causvid/generate", "stages", "flows")]
    assert sorted(file for file in markers if file.stat().st_size) == sorted(commands)


def test_only_one_file_says_cuda() -> None:
    files = [p for d in ("causvid", "stages", "flows") for p in (ROOT / d).rglob("*.py")]
    assert [p.relative_to(ROOT).as_posix() for p in files if "cuda" in p.read_text()] == ["causvid/compute/device.py"]


def test_only_the_folder_of_the_backbone_knows_its_classes_and_keys() -> None:
    """Other folders use functions of the backbone.

    Exceptions are the formats of the original CausVid code and the class name in exported pipelines.
    """
    words = r"WanTransformer3DModel|AutoencoderKLWan|UMT5EncoderModel|\[\"z_dim|config\.z_dim|scale_factor_spatial|\"to_q|\"blocks\."
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "causvid").rglob("*.py")]
    others = [name for name in files if not name.startswith(("causvid/wan/", "causvid/interop/", "causvid/models/"))]
    code = {name: re.sub(r'""".*?"""|#.*', "", (ROOT / name).read_text(), flags=re.DOTALL) for name in others}
    assert {name for name, text in code.items() if re.search(words, text)} == set()


def test_the_model_core_needs_no_orchestration() -> None:
    """Models, diffusion, losses, sampling and the pipeline run without Ray, DVC, Prefect, MLflow, LMDB and decord."""
    code = (
        "import sys\n"
        "blocked = ('ray', 'dvc', 'prefect', 'mlflow', 'lmdb', 'decord', 'av')\n"
        "sys.modules.update(dict.fromkeys(blocked))\n"
        "import causvid.pipeline, causvid.wan.text_encoder, causvid.methods.dmd.loss, causvid.methods.ode_init.loss\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [*(f"stages.{stage}" for stage in STAGES), "causvid.generate.command"])
def test_a_command_prints_its_help_without_the_packages_of_its_work(module: str) -> None:
    """The import of torch, diffusers and others takes seconds, so that ``--help`` and wrong options must not need it."""
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"
        f"sys.argv[1:] = ['--help']\n"
        f"runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


def test_our_packages_are_importable_from_any_folder(tmp_path: Path) -> None:
    """A script of a user in any folder can import the packages if Python of the environment runs the script."""
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


def test_files_and_functions_that_the_docs_name_exist() -> None:
    """The docs name a function by its path and its name, for example ``methods/dmd/loss.py`` `dmd_loss`."""
    lost = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for path, name in re.findall(r"`([\w./-]+\.(?:py|md|yaml))`(?: `([\w.]+)`)?", page.read_text()):
            if "NAME" in path:  # the reader of the recipe creates this file
                continue
            places = (ROOT / folder / path for folder in (".", "causvid", "docs", "reports"))
            file = next((place for place in places if place.is_file()), None)
            defined = rf"^\s*(def|class) {name.split('.')[-1]}\b"
            if file is None or (name and not re.search(defined, file.read_text(), re.MULTILINE)):
                lost.append(f"{page.name}: {path} {name}".strip())
    assert lost == []
