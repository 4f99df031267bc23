"""`harness offer`: what is here, in Ray's words."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil

import pytest

from harness.__main__ import main
from harness.base.errors import HarnessError
from harness.cluster import address
from harness.cluster.offer import kind, label, resource
from harness.commands import offer
from harness.machine import probe
from harness.machine.vendors import VENDORS


def words(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    line = capsys.readouterr().out.splitlines()[-1]
    return dict(word.partition("=")[::2] for word in shlex.split(line) if word.startswith("--"))


def test_a_processor_is_one_device_and_gpus_are_as_many_as_are_visible(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = probe.host().model_copy(update={"name": "NVIDIA H200"})
    monkeypatch.setattr(probe, "missing", lambda it: "" if it.name in ("cpu", "h200") else "not here")
    monkeypatch.setattr(probe, "product", lambda vendor: ("NVIDIA H200", "") if vendor == "nvidia" else ("", "none"))
    monkeypatch.setattr(probe, "device", lambda it: device if it.is_gpu else probe.host())
    monkeypatch.setattr(VENDORS["nvidia"], "count", lambda: 4, raising=False)
    assert main(["offer", "--matrix", "suites/matrix.toml"]) == 0
    found = words(capsys)
    assert json.loads(found["--resources"]) == {resource("cpu"): 1.0, resource("h200"): 4.0}
    assert found["--num-gpus"] == "4"
    assert f"{label('h200')}={kind('NVIDIA H200')}" in found["--labels"].split(",")


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    offer.add_arguments(parser)
    return parser.parse_args(words)


def test_joining_becomes_rays_own_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *words: became.append(words))
    monkeypatch.setattr(shutil, "which", lambda name, path: "/bin/ray")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    asked: list[str] = []
    monkeypatch.setattr(address, "check_head", asked.append)
    # What would be executed returns here, and so says nothing to a shell.
    offer.run(given("--join", "head:6379"))
    ((program, command, environ),) = became
    assert (program, command[:3]) == ("/bin/ray", ["ray", "start", "--address=head:6379"])
    assert "--block" not in command
    offer.run(given("--join", "head:6379", "--block"))
    assert became.pop()[1] == [*command, "--block"]
    assert asked == ["head:6379"] * 2
    assert environ["HARNESS_NODE_GPUS"].isdigit()
    assert environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "set RAY_AUTH_MODE=token" in capsys.readouterr().out


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(HarnessError, match=r"pip install 'torchao-harness\[ray\]'"):
        offer.run(given("--head"))
