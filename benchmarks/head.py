"""Compares the product of states and head that generation uses on a CPU with torch's own, for a few states.

    python benchmarks/head.py          # seconds

Hidden size 512, 50,260 tokens, fp32; medians of 15 calls that take turns. The last line is JSON: milliseconds by the
number of states, and the ratio.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coconut_ds.model.head import vocabulary_product

WIDTH, VOCABULARY, REPEATS = 512, 50260, 15


@torch.no_grad()
def main() -> None:
    """Measures and prints one row for each number of states."""
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    rows = []
    for states in (1, 8, 32, 64, 128):
        x = torch.randn(states, WIDTH)
        torch_s, ours_s = in_turns(lambda x=x: head(x), lambda x=x: vocabulary_product(head, x))  # type: ignore[misc]
        rows.append(
            {
                "states": states,
                "torch_ms": round(torch_s * 1e3, 2),
                "ours_ms": round(ours_s * 1e3, 2),
                "ratio": round(torch_s / ours_s, 2),
            }
        )
        sys.stderr.write(f"{rows[-1]}\n")
    print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}))


def in_turns(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function; they are called in turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS + 2):
        for function, taken in zip(functions, seconds, strict=True):
            began = time.perf_counter()
            function()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[2:]) for taken in seconds]


if __name__ == "__main__":
    main()
