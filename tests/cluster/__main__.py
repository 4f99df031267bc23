"""Many cells on many devices of a real Ray on this machine, by sessions that sleep: what the planner costs.

    python -m tests.cluster --cells 1000 --devices 20

Prints the makespan against what no schedule can beat, the planner's processor time and memory, and the addresses that
Ray listens on. Recipes' cells wait for their baseline's, times are log-normal, as those of a matrix are.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from harness.cluster.campaign import Campaign, Event
from harness.cluster.engine import LOCAL, RayEngine
from harness.cluster.offer import Device, Offer
from harness.cluster.units import Unit, bound
from tests.cluster import simulated


def cells(count: int, mean: float, seed: int = 1) -> list[Unit]:
    """Return units of ten recipes a model, the first of them the baseline."""
    draw = random.Random(seed)
    found: list[Unit] = []
    for number in range(count):
        model, recipe = divmod(number, 10)
        seconds = mean * draw.lognormvariate(-0.125, 0.5)
        tests = (f"test_a[{number}]", f"test_b[{number}]")
        found.append(Unit(f"m{model}-r{recipe}", "sim", tests, seconds, 0, f"m{model}-r0" if recipe else ""))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="what a cell takes at the mean")
    given = parser.parse_args()
    offer = Offer((Device("sim", "a simulated device", given.devices),))
    engine = RayEngine.start(LOCAL, lambda: offer, Path.cwd(), print)
    engine.run = simulated.session
    print(engine.told)
    print("listens on:", *sorted(_listening()))
    units, done, missing = cells(given.cells, given.seconds), 0, 0

    def take(unit: Unit, event: Event) -> None:
        nonlocal done
        done += event["kind"] == "done"

    def over(unit: Unit, left: Sequence[str], why: str) -> None:
        nonlocal missing
        missing += len(left)

    seconds = {unit.name: unit.seconds for unit in units}
    campaign = Campaign(
        units, engine, lambda unit, left: {"tests": list(left), "seconds": seconds[unit.name]}, take, over, print
    )
    process = psutil.Process()
    before, started, spent = process.memory_info().rss, time.monotonic(), time.process_time()
    campaign.run()
    took, spent = time.monotonic() - started, time.process_time() - spent
    grown = (process.memory_info().rss - before) / 1e6
    engine.close()
    least = bound(units, {"sim": given.devices})
    print(f"{given.cells} cells on {given.devices} devices: {done} tests ended, {missing} missing")
    print(f"makespan {took:.1f} s, at least {least:.1f} s: {took / least:.3f} times the bound")
    print(f"planner: {spent:.1f} s of processor time, {spent / took:.1%} of a core; memory grew by {grown:.0f} MB")


def _listening() -> set[str]:
    """Return the addresses that this process and all that it started listen on."""
    own = {it.pid for it in psutil.Process().children(recursive=True)} | {psutil.Process().pid}
    sockets = (it for it in psutil.net_connections("tcp") if it.status == psutil.CONN_LISTEN and it.pid in own)
    return {it.laddr.ip for it in sockets}


if __name__ == "__main__":
    main()
