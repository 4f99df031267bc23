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

    def measure(self, copy_bytes: int, size: int, rounds: int) -> dict[str, Any]:
        """Return the copy bandwidth in bytes a second (read and written) and matrix rates in operations a second.

        Each is the best of ``rounds`` rounds: a ceiling, not an average. Matrix products are ``size`` cubed, on
        random data; a data type that the device cannot multiply is left out.
        """
        bandwidth = 2 * copy_bytes / self._best(self._copy(copy_bytes), rounds)
        rates: dict[str, float] = {}
        for name, product in self._products(size).items():
            try:
                rates[name] = 2 * size**3 / self._best(product, rounds)
            except (RuntimeError, NotImplementedError) as error:
                print(f"{name}: {error}")
        return {"bandwidth": bandwidth, "rates": rates}

    def _copy(self, size: int) -> Callable[[], Any]:
        source = torch.empty(size, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def _products(self, size: int) -> dict[str, Callable[[], Any]]:
        a = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        b = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        products: dict[str, Callable[[], Any]] = {"bfloat16": lambda: a @ b.t()}
        low = torch.randint(-128, 127, (size, size), device=self.device, dtype=torch.int8)
        products["int8"] = lambda: torch._int_mm(low, low.t())
        if self.device == "cuda":
            a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
            rows = torch.ones(size, 1, device=self.device)
            columns = torch.ones(1, size, device=self.device)
            products["float8"] = lambda: torch._scaled_mm(
                a8, b8.t(), scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        return products

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


BACKEND = Limits
