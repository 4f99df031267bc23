"""What this device can do at best: bytes copied a second, and operations a second of matrix products by data type."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from harness.worker.backend import Backend


class Limits(Backend):
    """Measures a device's ceilings with plain torch."""

    commands: ClassVar[tuple[str, ...]] = ("measure",)

    def open(self, device: str) -> dict[str, Any]:
        self.device = device
        return {}

    def measure(self, copy_bytes: int, size: int, rounds: int, arithmetic: list[str]) -> dict[str, Any]:
        """Return the copy bandwidth in bytes a second (read and written) and matrix rates in operations a second.

        Each is the best of ``rounds`` rounds: a ceiling, not an average. Matrix products are ``size`` cubed, on
        random data of each data type of ``arithmetic``; one that cannot be multiplied after all is left out.
        """
        bandwidth = 2 * copy_bytes / self._best(self._copy(copy_bytes), rounds)
        rates: dict[str, float] = {}
        products = {"bfloat16": self._bfloat16, "int8": self._int8, "float8": self._float8}
        for name in arithmetic:
            try:
                rates[name] = 2 * size**3 / self._best(products[name](size), rounds)
            except (RuntimeError, NotImplementedError) as error:
                print(f"{name}: {error}")
        return {"bandwidth": bandwidth, "rates": rates}

    def _copy(self, size: int) -> Callable[[], Any]:
        source = torch.empty(size, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def _random(self, size: int) -> torch.Tensor:
        return torch.randn(size, size, device=self.device, dtype=torch.bfloat16)

    def _bfloat16(self, size: int) -> Callable[[], Any]:
        a, b = self._random(size), self._random(size)
        return lambda: a @ b.t()

    def _int8(self, size: int) -> Callable[[], Any]:
        low = torch.randint(-128, 127, (size, size), device=self.device, dtype=torch.int8)
        return lambda: torch._int_mm(low, low.t())

    def _float8(self, size: int) -> Callable[[], Any]:
        a, b = (self._random(size).to(_float8_type()) for _ in range(2))
        rows, columns = torch.ones(size, 1, device=self.device), torch.ones(1, size, device=self.device)
        # Faster sums are what torchao asks for too; AMD's products have no such choice.
        fast = torch.version.hip is None
        return lambda: torch._scaled_mm(
            a, b.t(), scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16, use_fast_accum=fast
        )

    def _best(self, call: Callable[[], Any], rounds: int) -> float:
        call()
        best = float("inf")
        for _ in range(rounds):
            self._synchronize()
            start = time.perf_counter()
            for _ in range(5):
                call()
            self._synchronize()
            best = min(best, (time.perf_counter() - start) / 5)
        return best

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _float8_type() -> torch.dtype:
    """Return the 8-bit type that this device multiplies: AMD's first such products take one of their own."""
    first = torch.version.hip and torch.cuda.get_device_properties(0).gcnArchName.startswith("gfx94")
    return torch.float8_e4m3fnuz if first else torch.float8_e4m3fn


BACKEND = Limits
