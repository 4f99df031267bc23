"""Which stacks were seen working: from records alone, of whatever hardware, and of what was not discarded."""

from __future__ import annotations

from harness.records.schema import Device, Header, Line
from harness.report.stacks import stacks
from tests.report.test_tables import measured

GPU = Device(name="NVIDIA L40S", vendor="nvidia", torch_device="cuda", detail={"driver": "580.1"})
VERSIONS = {"torch": "2.14.0", "torchao": "0.18.0", "transformers": "5.20.2", "vllm": "0.33.0"}


def row(recipe: str, server: str, *, discarded: str = "", **versions: str) -> Line:
    found = measured("latency", 1.0, recipe, server=server, hardware="l40s", time=86400.0)
    return found.model_copy(update={"device": GPU, "packages": VERSIONS | versions, "discarded": discarded})


def header(python: str) -> Header:
    return Header(run="r", command=[], packages={}, device=Device(name="host"), python=python)


def told(*runs: list[Line]) -> list[dict[str, str]]:
    found = stacks(runs)
    return [dict(zip(found.header, one, strict=True)) for one in found.rows]


def test_a_stack_is_what_the_versions_and_the_device_are() -> None:
    first = [header("3.12.4"), row("bf16", "vllm"), row("int8wo", "vllm"), row("bf16", "transformers")]
    other = [header("3.12.4"), row("bf16", "sglang", transformers="5.8.1", sglang="0.5.13")]
    common = {"hardware": "l40s", "device": "NVIDIA L40S", "driver": "580.1", "python": "3.12.4", "last": "1970-01-02"}
    common |= {"torch": "2.14.0", "torchao": "0.18.0", "executorch": "-"}
    assert told(first, other) == [
        common
        | {"transformers": "5.20.2", "vllm": "0.33.0", "sglang": "-"}
        | {"what ran": "vllm: bf16, int8wo; transformers: bf16"},
        common | {"transformers": "5.8.1", "vllm": "-", "sglang": "0.5.13", "what ran": "sglang: bf16"},
    ]


def test_what_was_discarded_was_not_seen_working_and_another_python_is_another_stack() -> None:
    found = told([header(""), row("bf16", "vllm"), row("int8wo", "vllm", discarded="throttled")], [header("3.13.0")])
    assert [(it["python"], it["what ran"]) for it in found] == [("-", "vllm: bf16")]
    found = told([header("3.12.4"), row("bf16", "vllm")], [header("3.13.0"), row("bf16", "vllm")])
    assert [it["python"] for it in found] == ["3.12.4", "3.13.0"]
