"""Compares two attempts at a run bit for bit: last checkpoint and record."""

import json
from pathlib import Path
from typing import Any

import numpy
import torch

from coconut_ds.training.metrics import read_metrics


def differences(left: Path, right: Path) -> list[str]:
    """Describes each difference between two attempts."""
    found = []
    ours, theirs = (sorted(p.name for p in folder.glob("checkpoint_*")) for folder in (left, right))
    if ours != theirs:
        return [f"checkpoints {ours} and {theirs}"]
    last = max(ours, key=lambda name: [int(part) for part in name.split("_")[1:]])
    files = [{p.relative_to(folder / last) for p in (folder / last).rglob("*")} for folder in (left, right)]
    found += [f"only one of them has {name}" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        path, other = left / last / name, right / last / name
        if path.is_dir() or path.name == "manifest.json":
            continue
        if path.name == "resume_state.json":
            values = [json.loads(each.read_text()) for each in (path, other)]
            found += [f"{name}: {key}" for key in ("position", "scores") if values[0][key] != values[1][key]]
        elif path.read_bytes() != other.read_bytes():
            found.append(str(name))
    records = [[plain(line) for line in read_metrics(folder / "metrics.jsonl")] for folder in (left, right)]
    if records[0] != records[1]:
        at = next((i for i, (a, b) in enumerate(zip(*records, strict=False)) if a != b), min(map(len, records)))
        found.append(f"metrics.jsonl: {len(records[0])} and {len(records[1])} lines, the first to differ is {at}")
    return found


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the record without the values that depend on the clock."""
    return {key: value for key, value in line.items() if not key.startswith("perf/") and key != "time"}


def unequal(a: Any, b: Any, where: str) -> list[str]:
    """Paths to the parts of two nested values that are not equal bit for bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        # Compared as bytes, since 0 equals -0, and NaN does not equal itself.
        return [] if same and torch.equal(octets(a), octets(b)) else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [where]
        return [path for key in a for path in unequal(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, (list, tuple)):
        if type(a) is not type(b) or len(a) != len(b):
            return [where]
        return [path for i, (x, y) in enumerate(zip(a, b, strict=True)) for path in unequal(x, y, f"{where}[{i}]")]
    if isinstance(a, (int, float, str, bytes, bool, type(None))):
        return [] if a == b else [where]
    if type(a).__module__ == "numpy":
        return [] if type(a) is type(b) and a.dtype == b.dtype and numpy.array_equal(a, b) else [where]
    # Objects of DeepSpeed (its configuration, an enumeration) are compared by their attributes.
    inner = getattr(a, "__dict__", None)
    if inner:
        return unequal(inner, getattr(b, "__dict__", None), where)
    return [] if a == b else [where]


def octets(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor's elements."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
