"""Many cells on many devices of a real Ray on this machine, by sessions that sleep: what the planner costs.

    python -m tests.cluster --cells 10000 --devices 100 --seconds 20 --write docs/results/fleet-ten-thousand.md
    python -m tests.cluster --cells 90 --devices 9 --nodes 3 --seconds 3 20 60 --write docs/results/fleet-real.md

With ``--nodes`` they are of several real raylets, beside a head that has none. Prints the makespan against what no
schedule can beat, where the devices' time went, the planner's processor time and memory, and the addresses that Ray
listens on. Recipes' cells wait for their baseline's, times are log-normal, as those of a matrix are.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.cluster.address import LOCAL
from harness.cluster.campaign import Campaign, Event
from harness.cluster.engine import RayEngine
from harness.cluster.offer import Device, Offer
from harness.cluster.units import Unit, bound
from tests.cluster import simulated
from tests.faults.raylets import Nodes, environment


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


@dataclass
class Devices:
    """Where the time of devices went, by when each cell began and ended."""

    count: int
    started: float = field(default_factory=time.monotonic)
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def told(self, over: float) -> str:
        """Return it in words, as shares of all of their time."""
        whole = (over - self.started) * self.count
        first = sum(it - self.started for it in sorted(self.began.values())[: self.count])
        last = sum(over - it for it in sorted(self.ended.values())[-self.count :])
        busy = sum(it - self.began[name] for name, it in self.ended.items())
        shares = [it / whole for it in (busy, first, whole - busy - first - last, last)]
        return "of the devices' time {:.0%} in cells, {:.0%} before their first, {:.0%} between, {:.0%} after".format(
            *shares
        )


def play(given: argparse.Namespace, cluster: Nodes | None, mean: float) -> list[str]:
    """Run cells that take so many seconds at the mean; returns what it came to, a line each."""
    offer = Offer((Device("sim", "a simulated device", given.devices),))
    address = cluster.cluster.address if cluster else LOCAL
    root = Path(tempfile.mkdtemp(prefix="fleet-")) if cluster else Path.cwd()
    engine = RayEngine.start(address, lambda: offer, root, print)
    while engine.devices().get("sim", 0) < given.devices:
        time.sleep(0.5)
    engine.run = simulated.session
    print(engine.told)
    print("listens on:", *sorted(_listening()))
    units, done, missing = cells(given.cells, mean), 0, 0
    process, sizes = psutil.Process(), list[float]()

    def take(unit: Unit, event: Event) -> None:
        nonlocal done
        if event["kind"] in ("begin", "end"):
            (devices.began if event["kind"] == "begin" else devices.ended)[unit.name] = time.monotonic()
        done += event["kind"] == "done"
        if not done % max(1, len(units) // 2) and event["kind"] == "done":
            sizes.append(process.memory_info().rss / 1e6)

    def over(unit: Unit, left: Sequence[str], why: str) -> None:
        nonlocal missing
        missing += len(left)

    seconds = {unit.name: unit.seconds for unit in units}
    campaign = Campaign(
        units, engine, lambda unit, left: {"tests": list(left), "seconds": seconds[unit.name]}, take, over, print
    )
    before, spent = process.memory_info().rss, time.process_time()
    devices = Devices(given.devices)
    campaign.run()
    ended, spent = time.monotonic(), time.process_time() - spent
    took, grown = ended - devices.started, (process.memory_info().rss - before) / 1e6
    engine.close()
    least = bound(units, {"sim": given.devices})
    return [
        f"{given.cells} cells on {given.devices} devices: {done} tests ended, {missing} missing",
        f"makespan {took:.1f} s, at least {least:.1f} s: {took / least:.3f} times the bound; {devices.told(ended)}",
        f"planner: {spent:.1f} s of processor time, {spent / took:.1%} of a core, {1000 * spent / given.cells:.0f} ms "
        f"a cell; memory grew by {grown:.0f} MB",
        f"its memory after each quarter: {', '.join(f'{it:.0f} MB' for it in sizes)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[2.0], help="what a cell takes at the mean, a run each"
    )
    parser.add_argument("--nodes", type=int, default=0, help="so many raylets beside a head, rather than one in all")
    parser.add_argument("--write", type=Path, help="write the figures there too")
    given = parser.parse_args()
    cluster = None
    if given.nodes:
        os.environ.update(environment())
        cluster = Nodes.start(given.nodes, given.devices // given.nodes)
    words = f"python -m tests.cluster --cells {given.cells} --devices {given.devices} --nodes {given.nodes} --seconds "
    words += " ".join(f"{it:g}" for it in given.seconds)
    page = f"# Many cells over real raylets\n\nBy `{words}`, sessions that sleep, by the real protocol.\n"
    for mean in given.seconds:
        told = play(given, cluster, mean)
        print(*told, sep="\n")
        shared = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the end"
        page += f"\n## Cells of {mean:g} s\n\n{shared}\n\n" + "".join(f"- {it}\n" for it in told)
    if cluster:
        cluster.close()
    if given.write:
        given.write.write_text(page, encoding="utf-8")


def _listening() -> set[str]:
    """Return the addresses that this process and all that it started listen on, as ``ss`` tells."""
    own = {it.pid for it in psutil.Process().children(recursive=True)} | {psutil.Process().pid}
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [it for it in lines if own & {int(pid) for pid in re.findall(r"pid=(\d+)", it)}]
    return {it.split()[3].rpartition(":")[0].strip("[]") for it in ours}


if __name__ == "__main__":
    main()
