"""A cluster of Slurm on a network of its own (tests/cluster/networks.py): its controller here, a node a machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import networks
from tests.cluster.networks import Machine, Network

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
_START = 60.0
_CONFIGURATION = """
ClusterName=small
SlurmctldHost={host}({address})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile=/tmp/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=300
MessageTimeout=60
KillWait=20
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Return why there can be no Slurm here; nothing where there can."""
    for program in _PROGRAMS:
        if not shutil.which(program):
            return f"no {program}; on Debian: apt-get install slurm-wlm munge"
    return networks.missing()


@dataclass
class Slurm:
    """A controller and nodes, with ``gpus`` each that are only counted."""

    network: Network
    gpus: int = 0
    nodes: list[Machine] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self, count: int) -> Iterator[Slurm]:
        """Start all of it, and end all of it."""
        self.folder = self.network.folder / "slurm"
        (self.folder / "state").mkdir(parents=True)
        self.controller = self.network.add()
        self.nodes = [self.network.add() for _ in range(count)]
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {it: self.folder / f"munge.{it}" for it in ("socket", "key", "pid", "log", "seed")}
        words = [f"--{'socket' if it == 'socket' else f'{it}-file'}={path}" for it, path in files.items()]
        with (self.folder / "printed").open("wb") as out:
            self.controller.start(["munged", "--foreground", "--force", *words], self.environ(), "/", out)
            self.controller.start(["slurmctld", "-D", "-i"], self.environ(), "/", out)
            for node in self.nodes:
                command = ["slurmd", "-D", "-N", node.name, "-f", str(self.folder / "slurm.conf")]
                node.start(command, self.environ(), "/", out)
        try:
            self._wait()
            yield self
        finally:
            for machine in [*self.nodes, self.controller]:
                machine.die()

    def environ(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    @contextlib.contextmanager
    def submitted(
        self, script: Path, words: Sequence[str], options: Sequence[str], environ: Mapping[str, str], cwd: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Submit a script; gives sbatch, which ends with the job, by its exit status."""
        command = ["sbatch", "--wait", *options, str(script), *words]
        process = subprocess.Popen(command, env={**self.environ(), **environ}, cwd=cwd, stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _configure(self) -> None:
        processors = os.cpu_count() or 1
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        nodes = "\n".join(
            f"NodeName={it.name} NodeAddr={it.address} NodeHostname={it.name} CPUs={processors}{gres} State=UNKNOWN"
            for it in self.nodes
        )
        names = {"host": self.controller.name, "address": self.controller.address}
        names |= {"folder": str(self.folder), "nodes": nodes}
        (self.folder / "slurm.conf").write_text(_CONFIGURATION.format(**names), encoding="utf-8")
        files = [self.folder / f"gpu{number}" for number in range(self.gpus)]
        for file in files:
            file.touch()
        gres = "".join(f"Name=gpu File={file}\n" for file in files)
        (self.folder / "gres.conf").write_text(gres, encoding="utf-8")

    def _wait(self) -> None:
        end, told = time.monotonic() + _START, ""
        while time.monotonic() < end:
            command = ["sinfo", "--noheader", "--Node", "--format=%T"]
            done = subprocess.run(command, env=self.environ(), capture_output=True, text=True, check=False)
            told = done.stdout + done.stderr
            if done.stdout.split() == ["idle"] * len(self.nodes):
                return
            time.sleep(0.5)
        logs = [
            self.folder / "printed",
            self.folder / "slurmctld.log",
            *(it.folder / "slurmd.log" for it in self.nodes),
        ]
        raise AssertionError("\n".join([told, *(it.read_text()[-2000:] for it in logs if it.exists())]))
