"""What ``--on`` names, before Ray is asked: no cluster, one at which nobody answers, or one that begins just now."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from harness.base.errors import HarnessError
from harness.cluster import address


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("on", ["loacl", "ray://", "ray://:10001", ":6379", "head:", "head:port", "head:99999", "a b"])
def test_what_names_no_cluster_is_refused(on: str) -> None:
    with pytest.raises(HarnessError, match=r"names no cluster: give local, auto, HEAD:6379 or ray://HEAD:10001"):
        address.check(on)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_an_address_at_which_nothing_answers_is_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = form.format(port := free_port())
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(HarnessError, match=rf"nothing answers at port {port} of 127.0.0.1 \(Connection refused\)"):
        address.check(on, 0.0)


@pytest.mark.parametrize("head", ["head", "ray://head:10001", ":6379", "head:6379/path"])
def test_what_names_no_head_is_not_joined(head: str) -> None:
    with pytest.raises(HarnessError, match=f"--join '{head}' names no head: give HEAD:6379"):
        address.check_head(head)


def test_a_head_that_does_not_answer_is_not_joined() -> None:
    port = free_port()
    with pytest.raises(HarnessError, match=rf"--join 127.0.0.1:{port}: nothing answers at port {port} of 127.0.0.1"):
        address.check_head(f"127.0.0.1:{port}", 0.0)


def test_a_name_of_no_host_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"--on ray://head.invalid: nothing answers at port 10001 of head.invalid"):
        address.check("ray://head.invalid", 0.0)


def test_a_head_that_begins_just_now_is_waited_for() -> None:
    port, done = free_port(), threading.Event()

    def begin() -> None:
        time.sleep(0.2)
        with socket.create_server(("127.0.0.1", port)):
            done.wait(60)

    head = threading.Thread(target=begin)
    head.start()
    address.check(f"127.0.0.1:{port}", 60.0)
    done.set()
    head.join()


@pytest.mark.parametrize("on", ["local", "auto", "other://of-a-plugin-of-ray"])
def test_what_ray_finds_by_itself_is_left_to_it(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address.check(on, 0.0)


def test_no_node_of_this_machine_alone_comes_late() -> None:
    assert address.patience("local", 120.0) < 10
    assert address.patience("local", 1.0) == 1.0
    assert address.patience("ray://head", 120.0) == 120.0


@pytest.mark.parametrize("seconds", [float("nan"), -1.0])
def test_what_is_no_number_of_seconds_is_not_waited_for(seconds: float) -> None:
    with pytest.raises(HarnessError, match=r"--wait-for-nodes (nan|-1): seconds, from 0 on"):
        address.patience("ray://head", seconds)
