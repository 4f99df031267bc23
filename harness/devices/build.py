"""Builds the C++ runner against the headers and libraries of ExecuTorch's own wheel, for this machine or aarch64."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from harness.base.errors import ArtifactError
from harness.base.files import file_digest
from harness.base.text import redact
from harness.contract import guarded
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store

SOURCE = Path(__file__).with_name("runner.cpp")
RUNNER = "runner"
SYSROOT = Path("/usr/aarch64-linux-gnu")
# What libraries of the wheel a program of this project needs: they register themselves and must not be dropped.
_LIBRARIES = (
    "executorch",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_backend_xnnpack",
    "executorch_threadpool",
)
# As the wheel's executorch-config.cmake has it; CMake itself would have to be 3.28 or later for its targets.
_FLAGS = ["-std=c++17", "-O2", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED"]
_FLAGS += ["-DET_USE_THREADPOOL"]
_OPERATORS = Path("extension/llm/custom_ops/libcustom_ops_aot_lib.so")
_BINDINGS = "extension/pybindings/_C.*.so"
_LOCATE = (
    "import importlib.util as u, sys; s = u.find_spec('executorch');"
    "sys.exit('executorch is not installed') if s is None else print(list(s.submodule_search_locations)[0])"
)


def compiler(machine: str) -> str:
    """Return the C++ compiler for a machine's programs."""
    return "g++" if machine == platform.machine() else f"{machine}-linux-gnu-g++"


def missing(machine: str) -> str:
    """Return why the runner cannot be built for ``machine`` here, or an empty string."""
    needed = compiler(machine)
    if shutil.which(needed):
        return ""
    return f"no {needed}; on Debian: apt-get install {'g++' if needed == 'g++' else f'g++-{machine}-linux-gnu'}"


def runner(store: Store, environment: Environment, machine: str) -> Artifact:
    """Return a folder with ``runner`` and, in ``lib``, the libraries it needs; it can be carried elsewhere whole.

    Raises ArtifactError when ExecuTorch or the compiler is missing, or the compiler refuses the source.
    """
    if problem := missing(machine):
        raise ArtifactError(f"the runner for {machine} cannot be built: {problem}")
    version = environment.decisive().get("executorch")
    if version is None:
        raise ArtifactError("the runner needs ExecuTorch's wheel: pip install '.[mobile]'")
    key = {"source": file_digest(SOURCE), "machine": machine, "executorch": version, "compiler": _version(machine)}
    key |= {"flags": " ".join(_FLAGS), "libraries": " ".join(_LIBRARIES)}

    def build(folder: Path) -> dict[str, Any]:
        package = _installed(environment.python) if machine == platform.machine() else _wheel(store, version, machine)
        libraries = folder / "lib"
        libraries.mkdir()
        for name in _LIBRARIES:
            shutil.copy2(package / "lib" / f"lib{name}.so", libraries)
        include = package / "include"
        command = [compiler(machine), *_FLAGS, f"-I{include}"]
        command += [f"-I{include}/executorch/runtime/core/portable_type/c10", str(SOURCE), "-o", str(folder / RUNNER)]
        command += [f"-L{libraries}", "-Wl,--no-as-needed", *(f"-l{name}" for name in _LIBRARIES)]
        command += ["-Wl,-rpath,$ORIGIN/lib", "-ldl"]
        _compile(command, machine)
        for bindings in package.glob(_BINDINGS):
            named = [f"-Wl,-soname,{bindings.name}", "-o", str(libraries / bindings.name)]
            _compile([compiler(machine), "-shared", "-fPIC", "-xc", os.devnull, *named], machine)
        return {"machine": machine, "executorch": version}

    return store.get("runner", key, build, label=f"runner for {machine}")


def operators(store: Store, environment: Environment) -> list[Path]:
    """Return the libraries, in the order of their loading, that bring the custom SDPA to this machine's runner.

    Empty where the wheel has none. Its library is made for Python: it registers the same kernels with PyTorch, which it
    loads, and names ExecuTorch's Python bindings, of which it needs no symbol: an empty library of that name stands in
    for them, so that a process without Python can load it.
    """
    found = [_installed(environment.python) / _OPERATORS]
    stand_ins = sorted((runner(store, environment, platform.machine()).folder / "lib").glob("_C.*"))
    return [*stand_ins, *found] if found[0].is_file() and stand_ins else []


def _compile(command: list[str], machine: str) -> None:
    made = guarded.run(command)
    if made.returncode:
        raise ArtifactError(f"the runner for {machine} does not compile: {made.stderr.strip()[-1500:]}")


@functools.cache
def _version(machine: str) -> str:
    done = subprocess.run([compiler(machine), "-dumpfullversion"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@functools.cache
def _installed(python: str) -> Path:
    found = subprocess.run([python, "-c", _LOCATE], capture_output=True, text=True, check=False)
    if found.returncode:
        raise ArtifactError(f"the runner needs ExecuTorch's wheel ({found.stderr.strip()}): pip install '.[mobile]'")
    return Path(found.stdout.strip())


def _wheel(store: Store, version: str, machine: str) -> Path:
    """Return the package folder of another machine's wheel: its headers and libraries alone."""

    def build(folder: Path) -> dict[str, Any]:
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--platform", f"manylinux_2_28_{machine}", "--python-version", "3.11"]
        command += ["--dest", str(wheels), f"executorch=={version}"]
        result = guarded.run(command)
        if result.returncode:
            raise ArtifactError(f"ExecuTorch's wheel for {machine}: {redact(result.stderr.strip())[-800:]}")
        wheel = next(wheels.iterdir())
        digest = file_digest(wheel)
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(("executorch/include/", "executorch/lib/"))]
            archive.extractall(folder, names)
        wheel.unlink()
        wheels.rmdir()
        return {"wheel_sha256": digest}

    key = {"executorch": version, "machine": machine}
    return store.get("executorch-wheel", key, build, label=f"ExecuTorch for {machine}").folder / "executorch"
