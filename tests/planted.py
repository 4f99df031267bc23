"""Wheels of the installed torchao with a known fault in them, so that a gate can be shown what it must find.

Each keeps torchao's version and adds a local part to it (``0.18.0+slower.10``), so that it is a package of its own. The
same fault gives the same wheel to the byte, of which a cache has what it had.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path

_INT8 = "torchao/quantization/quantize_/workflows/int8/int8_tensor.py"

_SLOWER = """

# Planted: every int8 linear takes {share:.0%} longer than it took, by waiting busily after it.
def _planted_slower():
    import time

    table = Int8Tensor._ATEN_OP_TABLE, Int8Tensor._TORCH_FN_TABLE

    def wrap(function):
        def slower(*arguments, **options):
            start = time.perf_counter()
            result = function(*arguments, **options)
            end = time.perf_counter()
            end += {share} * (end - start)
            while time.perf_counter() < end:
                pass
            return result

        return slower

    for operators in table:
        mine = operators[Int8Tensor]
        for operator in (aten.linear.default, torch.nn.functional.linear):
            if operator in mine:
                mine[operator] = wrap(mine[operator])


_planted_slower()
"""

_WHOLE = """

# Planted: all that a model does between two int8 linears, and these, takes {share:.1%} longer than it took: of the
# processor's time, since by a clock a wait on a busy machine would cost several times what it says.
def _planted_whole():
    import time

    last = [0.0]

    def wrap(function):
        def slower(*arguments, **options):
            result = function(*arguments, **options)
            now = time.thread_time()
            # More is none of the model's: what was done before the first token.
            if now - last[0] < {pause}:
                end = now + {share} * (now - last[0])
                while time.thread_time() < end:
                    pass
            last[0] = time.thread_time()
            return result

        return slower

    for operators in (Int8Tensor._ATEN_OP_TABLE, Int8Tensor._TORCH_FN_TABLE):
        mine = operators[Int8Tensor]
        for operator in (aten.linear.default, torch.nn.functional.linear):
            if operator in mine:
                mine[operator] = wrap(mine[operator])


_planted_whole()
"""
_PAUSE = 0.05

_SCALES = """

# Planted: every {every}th scale of a weight is {factor} times what it should be.
_honest_from_hp = Int8Tensor.from_hp.__func__


def _planted_from_hp(cls, *arguments, **options):
    made = _honest_from_hp(cls, *arguments, **options)
    made.scale.view(-1)[::{every}] *= {factor}
    return made


Int8Tensor.from_hp = classmethod(_planted_from_hp)
"""

_MEMORY = """

# Planted: {megabytes} MB that nobody needs.
_planted_memory = torch.ones({megabytes} * 250_000)
"""


def slower(folder: Path, share: float) -> Path:
    """Write a torchao whose int8 linear takes ``share`` (0.1 for 10 %) longer."""
    return _patched(folder, f"slower.{round(share * 1000)}", _SLOWER.format(share=share))


def slower_whole(folder: Path, share: float) -> Path:
    """Write a torchao under which a whole model of int8 linears takes ``share`` longer."""
    return _patched(folder, f"whole.{round(share * 1000)}", _WHOLE.format(share=share, pause=_PAUSE))


def worse(folder: Path, factor: float = 1.5, every: int = 16) -> Path:
    """Write a torchao that makes every ``every``-th scale of an int8 weight ``factor`` times too large."""
    return _patched(folder, "worse", _SCALES.format(factor=factor, every=every))


def larger(folder: Path, megabytes: int) -> Path:
    """Write a torchao that holds ``megabytes`` of memory for nothing."""
    return _patched(folder, f"larger.{megabytes}", _MEMORY.format(megabytes=megabytes))


def same(folder: Path) -> Path:
    """Write the installed torchao as it is."""
    return _patched(folder, "", "")


def broken(folder: Path) -> Path:
    """Write a torchao that cannot be imported."""
    return _patched(folder, "broken", "\nraise ImportError('planted: this build is broken')\n", "torchao/__init__.py")


def _patched(folder: Path, local: str, code: str, file: str = _INT8) -> Path:
    installed = importlib.metadata.distribution("torchao")
    version = installed.version.partition("+")[0] + (f"+{local}" if local else "")
    path = folder / f"torchao-{version}-py3-none-any.whl"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    info = f"torchao-{version}.dist-info"
    names = []
    with zipfile.ZipFile(path.with_suffix(".part"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part in installed.files or ():
            name = str(part)
            if not name.startswith("torchao/") or "__pycache__" in name:
                continue
            data = Path(str(installed.locate_file(part))).read_bytes()
            if name == file:
                data += code.encode()
            _write(archive, name, data)
            names.append(name)
        _write(archive, f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torchao\nVersion: {version}\n")
        _write(
            archive,
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        record = [*names, f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"]
        _write(archive, f"{info}/RECORD", "".join(f"{name},,\n" for name in record))
    path.with_suffix(".part").rename(path)
    return path


def _write(archive: zipfile.ZipFile, name: str, data: bytes | str) -> None:
    """Write a file of no date of its own."""
    archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, compresslevel=1)
