"""Clusters on a network of their own: real heads, nodes, cables and Slurm, as tests/cluster/real.py plays them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests import needs
from tests.cluster import networks, real, slurm
from tests.cluster.networks import Network

pytestmark = pytest.mark.programs
SERVER = "import socket; s = socket.create_server(('', 7000)); print('up', flush=True); [s.accept() for _ in range(9)]"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network without machines."""
    if why := networks.missing():
        pytest.skip(why)
    with Network(tmp_path_factory.mktemp("network")) as found:
        yield found


@pytest.fixture
def fleet() -> Iterator[real.Fleet]:
    """A network with a desk, at which pytest plans."""
    if why := networks.missing():
        pytest.skip(why)
    with real.fleet() as found:
        yield found


def test_machines_reach_each_other_by_the_network_alone_and_not_while_it_is_cut(network: Network) -> None:
    first, second = network.add(), network.add()
    (network.folder / "told").touch()
    with (network.folder / "told").open("wb") as out:
        first.start([sys.executable, "-c", SERVER], {}, "/", out)
        while not (network.folder / "told").read_text():
            pass
    ask = [sys.executable, "-c", f"import socket; socket.create_connection(('{first.name}', 7000), 2)"]
    second.run(ask, {})
    assert networks.answers(first.address, 7000)
    first.part()
    assert not networks.answers(first.address, 7000)
    first.heal()
    second.run(ask, {})
    assert first.run(["sh", "-c", "touch /tmp/own; hostname"], {}).strip() == first.name
    assert second.run(["sh", "-c", "ls /tmp"], {}).split() == ["printed"]
    first.die()
    assert not first.processes()
    assert not networks.answers(first.address, 7000)


@needs.package("ray")
@pytest.mark.slow
def test_a_cable_that_is_cut_and_mended_costs_no_figure(fleet: real.Fleet) -> None:
    found = fleet.cut()
    assert (found.status, found.missing, found.lost) == (0, 0, 0)
    assert found.measured
    assert found.passed


@needs.package("ray")
@pytest.mark.slow
def test_a_head_that_dies_is_told_of_and_another_cluster_goes_on(fleet: real.Fleet) -> None:
    first, again = fleet.head_dies()
    assert (first.status, again.status) == (pytest.ExitCode.TESTS_FAILED, 0)
    assert first.missing
    assert first.came
    assert (first.lost, again.lost, again.missing) == (0, 0, 0)


@needs.package("ray")
@pytest.mark.slow
def test_a_gate_whose_node_dies_judges_all_of_it_by_pairs_of_one_device(fleet: real.Fleet) -> None:
    found = fleet.gate()
    # 0.17.0 and 0.18.0 differ, and a tiny model's speed may be too uncertain to say.
    assert found.status in {0, 1, 3}
    assert (found.missing, found.lost) == (0, 0)
    assert found.passed
    assert found.machines > 1


@needs.package("ray")
@pytest.mark.slow
def test_the_guides_script_for_slurm_measures_on_all_of_its_nodes(fleet: real.Fleet) -> None:
    if why := slurm.missing():
        pytest.skip(why)
    found = fleet.slurm()
    assert (found.status, found.missing, found.lost) == (0, 0, 0)
    assert found.machines > 1
