"""Check the files in cluster/ without Slurm, Ray's cluster launcher or KubeRay, which the tests cannot run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

CLUSTER = Path("cluster")


def loaded(name: str) -> Any:
    return YAML(typ="safe").load(CLUSTER / name)


def test_the_slurm_script_starts_ray_on_all_nodes_and_the_pipeline_on_the_first(tmp_path: Path) -> None:
    commands = {
        "scontrol": 'test "$*" = "show hostnames node[1-3]" && printf "node1\\nnode2\\nnode3\\n"',
        "getent": 'test "$*" = "ahostsv4 node1" && printf "10.0.0.7 STREAM node1\\n10.0.0.7 DGRAM\\n"',
        "srun": 'shift; exec "$@"',
        "ray": 'printf "%s\\n" "$RAY_ADDRESS" "$RAY_AUTH_MODE" "${#RAY_AUTH_TOKEN}" "$@"',
    }
    place = tmp_path / ".venv" / "bin"
    place.mkdir(parents=True)
    for name, body in commands.items():
        (place / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / name).chmod(0o755)
    script = (CLUSTER / "slurm.sh").resolve()
    environment = os.environ | {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_NUM_NODES": "3"}
    done = subprocess.run(
        ["bash", str(script), "train_dmd"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == [
        "10.0.0.7:6379", "token", "64",
        "symmetric-run", "--address", "10.0.0.7:6379", "--min-nodes", "3", "--include-dashboard=false", "--",
        "dvc", "repro", "train_dmd", "",
    ]  # fmt: skip


def test_the_launcher_file_is_valid() -> None:
    """Ray adds its defaults to the file, and checks the schema of the file."""
    file = prepare_config(loaded("launcher.yaml"))
    validate_config(file)
    assert file["max_workers"] == len(file["provider"]["worker_ips"])


def test_the_pods_of_kuberay_share_the_project_and_the_token() -> None:
    spec = loaded("kuberay.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    assert str(cluster["rayVersion"]) == ray.__version__
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [spec["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups)]
    for pod in pods:
        (container,) = pod["containers"]
        assert [entry["name"] for entry in container["env"]] == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
        assert container["image"] == "registry.example/causvid"
    for group in groups:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} == {"project", "memory"}
