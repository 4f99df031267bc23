"""The files of a cluster that the guide ships: what Slurm would start, and KubeRay's own fields."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.node import GPUS
from harness.cluster.offer import label, resource

# ray.io/v1 RayCluster, as KubeRay's ray.io_rayclusters.yaml has it: fields that must be there, and those that may.
SPEC = ({"headGroupSpec"}, {"rayVersion", "authOptions", "workerGroupSpecs", "enableInTreeAutoscaling", "suspend"})
HEAD = ({"template"}, {"rayStartParams", "serviceType", "enableIngress", "headService", "resources", "labels"})
WORKERS = (
    {"groupName", "minReplicas", "maxReplicas", "template"},
    {
        "replicas",
        "rayStartParams",
        "numOfHosts",
        "idleTimeoutSeconds",
        "scaleStrategy",
        "suspend",
        "resources",
        "labels",
    },
)


@pytest.fixture
def guides(repository: Path) -> Path:
    return repository / "docs" / "guides"


@pytest.mark.programs
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_slurm_job_starts_a_head_its_workers_and_the_suites(guides: Path, tmp_path: Path, nodes: int) -> None:
    told = tmp_path / "told"
    programs = {
        "srun": f'echo "$RAY_AUTH_MODE ${{#RAY_AUTH_TOKEN}} $*" >> {told}',
        "scontrol": "printf 'first\\nsecond\\n'",
        "sleep": ":",
        "python": 'echo "a-token"',
    }
    for name, words in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-4]"}
    command = ["bash", str(guides / "fleet-slurm.sh"), "--recipe", "bf16"]
    subprocess.run(command, env=environ | {"SLURM_JOB_NUM_NODES": str(nodes)}, check=True, timeout=60)
    lines = sorted(told.read_text().splitlines())
    assert all(line.startswith("token 7 ") for line in lines)
    started = [line.partition("python -m ")[2] for line in lines]
    assert "harness offer --head" in started
    assert "pytest suites -m h100 --on first:6379 --recipe bf16" in started
    joined = [line for line in lines if "offer --join first:6379" in line]
    assert len(joined) == (nodes > 1)
    assert all(f"--nodes={nodes - 1} " in line and "--exclude=first" in line for line in joined)


def fields(found: dict[str, Any], known: tuple[set[str], set[str]]) -> None:
    must, may = known
    assert must <= found.keys() <= must | may


def test_the_kubernetes_file_has_the_fields_of_a_raycluster(guides: Path) -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((guides / "fleet-kubernetes.yaml").read_text(encoding="utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayCluster")
    fields(found["spec"], SPEC)
    assert found["spec"]["authOptions"] == {"mode": "token"}
    head = found["spec"]["headGroupSpec"]
    fields(head, HEAD)
    (workers,) = found["spec"]["workerGroupSpecs"]
    fields(workers, WORKERS)
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["template"]["spec"]["containers"]
    parameters = workers["rayStartParams"]
    assert resource("h100") in parameters["resources"]
    assert parameters["labels"].startswith(f"{label('h100')}=")
    (container,) = workers["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert {"name": GPUS, "value": str(gpus)} in container["env"]
    assert parameters["num-gpus"] == str(gpus)
