"""This process and VBench's interpreter exchange scores and errors correctly; stand-ins replace the packages."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from causvid import params
from causvid.evaluation import vbench
from causvid.evaluation.config import EvaluateConfig

ROWS = [{"path": "a.mp4", "caption": "one"}, {"path": "b.mp4", "caption": "two"}]
AMT = "amt_model/amt-s.pth"
# These stand-ins define the parts of torch and vbench that the runner uses.
STAND_IN = {
    "torch/__init__.py": """
grad = True
class no_grad:
    def __enter__(self):
        global grad
        grad = False
    def __exit__(self, *_):
        global grad
        grad = True
def device(name): return ("device", name)
def set_num_threads(count): assert count >= 1
""",
    "vbench/__init__.py": "",
    "vbench/utils.py": """
import os
import re
from pathlib import Path
def init_submodules(dimensions, local):
    cache = Path(os.environ["VBENCH_CACHE_DIR"])
    (cache / "written_by_vbench").write_text("")
    return {name: cache for name in dimensions}
""",
    "vbench-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: vbench\nVersion: 9.9\n",
}
HEAD = "import json, os, subprocess, sys, time, torch\nfrom pathlib import Path\n"
FLICKERING = """
def compute_temporal_flickering(info, device, cache):
    videos = json.loads(Path(info).read_text())
    assert not torch.grad and device == ("device", "cpu")
    assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["TORCH_HOME"].startswith(str(cache))
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "0"
    print("a lot of talk")
    assert [v["prompt_en"] for v in videos] == ["one", "two"]
    assert all(v["dimension"] == ["temporal_flickering"] and Path(v["video_list"][0]).is_absolute() for v in videos)
    return 0.25, [{"video_path": v["video_list"][0]} for v in videos]
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package vbench that shadows the real package. Tests add modules for the dimensions."""
    folder = tmp_path / "packages"
    for name, text in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "vbench"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


def config(weights: Path, *dimensions: str, python: Path = Path(sys.executable)) -> EvaluateConfig:
    return EvaluateConfig(
        feature_vae=Path("unread"), vbench_python=python, vbench_weights=weights, vbench_dimensions=dimensions
    )


def scored(tmp_path: Path, settings: EvaluateConfig) -> dict[str, Any]:
    with vbench.scoring(tmp_path, ROWS, settings, device="cpu", log=tmp_path / "vbench.log") as result:
        return result()


def test_the_subprocess_returns_scores(tmp_path: Path, stand_in: Path, weights: Path) -> None:
    (stand_in / "temporal_flickering.py").write_text(HEAD + FLICKERING)
    found = scored(tmp_path, config(weights, "temporal_flickering"))
    assert found == {"version": "9.9", "scores": {"temporal_flickering": 0.25}, "skipped": {}}
    assert (tmp_path / "vbench.log").read_text().strip() == "a lot of talk"


def test_dimensions_with_missing_weights_are_skipped_without_a_subprocess(tmp_path: Path, weights: Path) -> None:
    dimensions = [name for name, files in vbench.WEIGHTS.items() if files]
    found = scored(tmp_path, config(weights, *dimensions))
    assert found["scores"] == {}
    assert found["version"] is None
    assert set(found["skipped"]) == set(dimensions)
    for name in dimensions:
        assert all(file in found["skipped"][name] for file in vbench.WEIGHTS[name]), name
    assert not (tmp_path / "vbench.log").exists()


def test_only_the_missing_file_is_named(tmp_path: Path, weights: Path) -> None:
    clip, head = vbench.WEIGHTS["aesthetic_quality"]
    (weights / clip).parent.mkdir()
    (weights / clip).write_text("")
    reason = scored(tmp_path, config(weights, "aesthetic_quality"))["skipped"]["aesthetic_quality"]
    assert head in reason
    assert clip not in reason


def test_without_an_interpreter_all_dimensions_are_skipped_with_the_remedy(tmp_path: Path, weights: Path) -> None:
    settings = config(weights, "temporal_flickering", "imaging_quality", python=Path("nowhere/bin/python"))
    found = scored(tmp_path, settings)
    assert found["scores"] == {}
    assert set(found["skipped"]) == {"temporal_flickering", "imaging_quality"}
    assert all(
        "make vbench-env" in reason and "evaluate.vbench_python" in reason for reason in found["skipped"].values()
    )


def test_dimensions_that_need_vbench_prompts_are_skipped(tmp_path: Path, weights: Path) -> None:
    found = scored(tmp_path, config(weights, *vbench.NEEDS_OWN_PROMPTS))
    assert set(found["skipped"]) == set(vbench.NEEDS_OWN_PROMPTS)


def test_weights_are_linked_and_their_folder_is_not_changed(tmp_path: Path, stand_in: Path, weights: Path) -> None:
    wanted = [AMT, *vbench.WEIGHTS["subject_consistency"]]
    for name in wanted:
        (weights / name).parent.mkdir(parents=True, exist_ok=True)
        (weights / name).write_text(name)
    (stand_in / "motion_smoothness.py").write_text(
        HEAD + "def compute_motion_smoothness(info, device, cache):\n"
        "    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'\n"
        f"    return float((cache / '{AMT}').read_text() == '{AMT}'), [1, 2]\n"
    )
    (stand_in / "subject_consistency.py").write_text(
        HEAD + "def compute_subject_consistency(info, device, cache):\n"
        "    hub = Path(os.environ['TORCH_HOME'], 'hub', 'checkpoints', 'dino_vitbase16_pretrain.pth')\n"
        f"    assert all((cache / name).read_text() == name for name in {wanted[1:]!r})\n"
        f"    return float(hub.read_text() == {wanted[1]!r}), [1, 2]\n"
    )
    found = scored(tmp_path, config(weights, "motion_smoothness", "subject_consistency"))
    assert found["skipped"] == {}
    assert found["scores"] == {"motion_smoothness": 1.0, "subject_consistency": 1.0}
    assert sorted(str(p.relative_to(weights)) for p in weights.rglob("*") if p.is_file()) == sorted(wanted)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return float('nan'), [1, 2]", "score is nan"),
        ("return 0.5, [1]", "1 of 2 videos"),
        ("raise RuntimeError('no such operator\\nand more')", "RuntimeError: no such operator"),
        ("return 1 / 0, []", "ZeroDivisionError"),
    ],
)
def test_a_failed_dimension_is_skipped_with_a_reason(
    tmp_path: Path, stand_in: Path, weights: Path, body: str, reason: str
) -> None:
    (weights / AMT).parent.mkdir()
    (weights / AMT).write_text("")
    (stand_in / "temporal_flickering.py").write_text(HEAD + FLICKERING)
    (stand_in / "motion_smoothness.py").write_text(
        HEAD + f"def compute_motion_smoothness(info, device, cache):\n    {body}\n"
    )
    found = scored(tmp_path, config(weights, "motion_smoothness", "temporal_flickering"))
    assert found["scores"] == {"temporal_flickering": 0.25}  # the next dimension still has a score
    assert reason in found["skipped"]["motion_smoothness"]
    assert "\n" not in found["skipped"]["motion_smoothness"]


def test_a_crash_keeps_the_finished_scores(tmp_path: Path, stand_in: Path, weights: Path) -> None:
    (weights / AMT).parent.mkdir()
    (weights / AMT).write_text("")
    (stand_in / "temporal_flickering.py").write_text(HEAD + FLICKERING)
    (stand_in / "motion_smoothness.py").write_text(
        HEAD + "def compute_motion_smoothness(*_):\n    print('out of memory', flush=True)\n    os._exit(3)\n"
    )
    found = scored(tmp_path, config(weights, "temporal_flickering", "motion_smoothness"))
    assert found["scores"] == {"temporal_flickering": 0.25}
    assert found["skipped"] == {"motion_smoothness": "VBench's interpreter ended with code 3: out of memory"}


def test_an_environment_without_vbench_skips_the_dimensions(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = scored(tmp_path, config(weights, "temporal_flickering"))
    assert found["scores"] == {}
    assert found["version"] is None
    assert "code 1" in found["skipped"]["temporal_flickering"]
    assert "vbench" in found["skipped"]["temporal_flickering"]


def test_a_timeout_kills_the_runner_and_its_subprocesses(
    tmp_path: Path, stand_in: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vbench, "START_SECONDS", 3.0)
    monkeypatch.setattr(vbench, "SECONDS_PER_VIDEO", 0.0)
    (stand_in / "temporal_flickering.py").write_text(HEAD + endless(tmp_path))
    started = time.monotonic()
    found = scored(tmp_path, config(weights, "temporal_flickering"))
    assert time.monotonic() - started < 30
    assert "stopped after 3 s" in found["skipped"]["temporal_flickering"]
    assert all(has_ended(int((tmp_path / name).read_text())) for name in ("runner.pid", "helper.pid"))


def test_the_runner_is_killed_if_the_body_fails(tmp_path: Path, stand_in: Path, weights: Path) -> None:
    (stand_in / "temporal_flickering.py").write_text(HEAD + endless(tmp_path))
    settings, started = config(weights, "temporal_flickering"), tmp_path / "helper.pid"

    def body() -> None:
        with vbench.scoring(tmp_path, ROWS, settings, device="cpu", log=tmp_path / "vbench.log"):
            for _ in range(600):
                if started.exists() and started.read_text():
                    break
                time.sleep(0.05)
            raise ValueError("error of the body")

    with pytest.raises(ValueError, match="error of the body"):
        body()
    assert all(has_ended(int((tmp_path / name).read_text())) for name in ("runner.pid", "helper.pid"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent process to its children")
def test_the_runner_ends_if_the_stage_is_killed(tmp_path: Path, stand_in: Path, weights: Path) -> None:
    (stand_in / "temporal_flickering.py").write_text(HEAD + endless(tmp_path))
    program = (
        "import sys; from pathlib import Path; from causvid.evaluation import vbench; here = Path(sys.argv[1]);"
        "settings = vbench.EvaluateConfig(feature_vae=here, vbench_python=Path(sys.executable), vbench_weights=here,"
        " vbench_dimensions=('temporal_flickering',))\n"
        "with vbench.scoring(here, [], settings, device='cpu', log=here / 'log') as result: result()"
    )
    stage = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=params.ROOT)
    try:
        started = [tmp_path / name for name in ("runner.pid", "helper.pid")]
        while not all(path.exists() and path.read_text() for path in started):
            assert stage.poll() is None
            time.sleep(0.05)
    finally:
        stage.kill()
        stage.wait()
    runner, helper = (int(path.read_text()) for path in started)
    ended = has_ended(runner)
    os.kill(helper, signal.SIGKILL)
    assert ended


def endless(folder: Path) -> str:
    """Return the code of a dimension that starts a subprocess, writes both process ids to ``folder`` and never ends."""
    return (
        "def compute_temporal_flickering(*_):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"    Path({str(folder)!r}, 'runner.pid').write_text(str(os.getpid()))\n"
        f"    Path({str(folder)!r}, 'helper.pid').write_text(str(child.pid))\n"
        "    time.sleep(60)\n"
    )


def has_ended(pid: int) -> bool:
    """Return whether the process ``pid`` has ended, or is a zombie."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_the_runner_imports_only_the_standard_library() -> None:
    """The runner imports torch and VBench inside functions, so that this interpreter can import the runner, too."""
    names = set()
    for node in ast.walk(ast.parse(vbench.RUNNER.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    assert {name.split(".")[0] for name in names} - {"torch"} <= set(sys.stdlib_module_names)


def test_unknown_dimension_is_named() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.vbench_dimensions has 'beauty'"):
        config(Path("weights"), "beauty")


@pytest.mark.parametrize("profile", sorted(params.PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_has_a_valid_section(profile: Path) -> None:
    section = params.section(profile, "evaluate", EvaluateConfig)
    assert "temporal_flickering" in section.vbench_dimensions
    assert set(YAML(typ="safe").load(profile)["evaluate"]) == set(EvaluateConfig.__dataclass_fields__)


def test_vbench_has_sixteen_dimensions() -> None:
    assert len({*vbench.WEIGHTS, *vbench.NEEDS_OWN_PROMPTS}) == 16


def test_the_environment_is_locked_with_hashes_and_without_hosts() -> None:
    folder = params.ROOT / "requirements"
    pins = [line for line in (folder / "vbench.in").read_text().splitlines() if line and not line.startswith("#")]
    lock = (folder / "vbench.txt").read_text()
    locked = re.findall(r"^(\S+==\S+)(?: ;[^\\\n]*)? \\\n    --hash=sha256:[0-9a-f]{64}", lock, flags=re.MULTILINE)
    names = {re.sub(r"[-_.]+", "-", pin.split(" ;")[0]).lower() for pin in pins}
    assert names == {re.sub(r"[-_.]+", "-", pin).lower() for pin in locked}
    assert "://" not in lock
    assert not re.search(r"^\s*--(?!hash=)", lock, flags=re.MULTILINE)
