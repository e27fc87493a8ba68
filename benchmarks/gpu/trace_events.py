"""Reads traces of torch's profiler: which attention kernels ran, launches, copies, waits, and how busy the GPU was.

A trace is the JSON file of ``profiler.export_chrome_trace``. Of its events this module reads those with a duration
(``"ph": "X"``), by category:

* ``cpu_op``: an operator of torch, such as ``aten::mm``.
* ``user_annotation``: a block marked with ``torch.profiler.record_function``.
* ``cuda_runtime``, ``cuda_driver``: a call that the CPU makes, such as ``cudaLaunchKernel``.
* ``kernel``, ``gpu_memcpy``, ``gpu_memset``: work on the GPU.

Calls of the CPU and work on the GPU belong together by their ``correlation``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]

ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash on the CPU",
}
"""Operators of torch's attention kernels. Their backward operators have longer names and are not counted."""
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")
"""How the names of calls that launch kernels begin; a graph counts once."""
SYNCHRONISE = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cuCtxSynchronize")
"""How the names of calls begin in which the CPU waits for the GPU."""
CALLS, WORK = ("cuda_runtime", "cuda_driver"), ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Counts:
    """What happened within the marked blocks of one name."""

    blocks: int
    """How many such blocks there are."""
    seconds: float
    """From the beginning of the first block to the end of the last one, or of the GPU's last work for them."""
    attention: dict[str, int] = field(default_factory=dict)
    """Calls of torch's attention, by kernel (see ``ATTENTION``)."""
    launches: int = 0
    """Kernels and graphs that the CPU launched."""
    synchronisations: int = 0
    """Calls in which the CPU waited for the GPU."""
    copies: dict[str, int] = field(default_factory=dict)
    """Copies between the CPU and the GPU, by the profiler's name, for example ``HtoD (Pageable -> Device)``."""
    busy_s: float = 0.0
    """Seconds in which at least one kernel or copy ran on the GPU."""


def read_trace(path: Path) -> list[Event]:
    """The events with a duration."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


def count(events: Iterable[Event], block: str) -> Counts:
    """Counts what the CPU did within the blocks marked ``record_function(block)``, and the GPU's work for it.

    Raises:
        ValueError: the trace has no such block.
    """
    events = list(events)
    blocks = [
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] == block
    ]
    if not blocks:
        raise ValueError(f"the trace has no block named {block!r}")
    inside = [event for event in events if any(begin <= event["ts"] < end for begin, end in blocks)]
    calls = [event for event in inside if event.get("cat") in CALLS]
    correlations = {event["args"]["correlation"] for event in calls if "correlation" in event.get("args", {})}
    work = [
        event
        for event in events
        if event.get("cat") in WORK and event.get("args", {}).get("correlation") in correlations
    ]
    begin, end = min(begin for begin, _ in blocks), max(end for _, end in blocks)
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in work]
    end = max([end, *(span_end for _, span_end in spans)])
    copies = (event["name"].removeprefix("Memcpy ") for event in work if event["cat"] == "gpu_memcpy")
    return Counts(
        blocks=len(blocks),
        seconds=(end - begin) / 1e6,
        attention=dict(Counter(_attention(inside))),
        launches=sum(event["name"].startswith(LAUNCHES) for event in calls),
        synchronisations=sum(event["name"].startswith(SYNCHRONISE) for event in calls),
        copies=dict(Counter(name for name in copies if not name.startswith("DtoD"))),
        busy_s=_covered(spans) / 1e6,
    )


def _attention(events: Iterable[Event]) -> Iterator[str]:
    for event in events:
        if event.get("cat") == "cpu_op" and event["name"] in ATTENTION:
            yield ATTENTION[event["name"]]


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals; kernels of several streams may overlap."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
