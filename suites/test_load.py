"""Workloads on a server, on request (--workload NAME, -k capacity): what users meet at each rate, and the capacity."""

import pytest

pytestmark = pytest.mark.stage("server")


def test_load(cell, workload, measure, judge):
    """Users are answered as fast as they should be, at each rate."""
    judge(cell, measure.load(cell, workload).values())


def test_capacity(cell, workload, measure, judge):
    """The highest rate that keeps the workload's limits is as high as it should be."""
    judge(cell, measure.capacity(cell, workload).values())
