"""Checks that the optimizations of the latent loop do not reduce the accuracy of the demo.

    python benchmarks/accuracy.py          # 2 CPU cores, two runs at a time: a quarter of an hour

Trains ``coconut`` as ``make demo`` does (products of permutations), once unchanged and once without each optimization,
and scores the last checkpoint on the 1,000 test problems. Without an optimization, sums are rounded in another order,
so the training curves diverge after some hundred updates; the final accuracy must stay the same. The last line is JSON:
accuracy in percent, and the epochs in which stages began.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from coconut_ds.settings.overrides import text_override
from coconut_ds.studies.demo import TASK
from coconut_ds.studies.harness import TrainedRun, launch_run, score_on_test

PATCHES: dict[str, Callable[[], Any]] = {
    "unchanged": nullcontext,
    "transformers' cache": lambda: patch("coconut_ds.model.passes.takes_attention", lambda model: False),
    "whole last layer": lambda: patch("coconut_ds.model.last_layer.LastLayer.only", lambda self, read: nullcontext()),
    "unfused activation": lambda: patch("coconut_ds.model.latent_loop.fuse_activations", lambda model: None),
    "unsorted micro batches": lambda: patch("coconut_ds.training.batches.sorted", lambda rows, key: rows, create=True),
    "activation checkpointing": nullcontext,
}
"""What each variant changes in the code while it trains."""
OVERRIDES = {
    "unsorted micro batches": ["batch_size_training=16"],
    "activation checkpointing": ["activation_checkpointing=true"],
}
"""What some variants change in the configuration."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/accuracy"))
    parser.add_argument("--variants", nargs="+", choices=PATCHES, default=list(PATCHES))
    parser.add_argument("--without", choices=PATCHES, help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.without:
        sys.exit(train_here(arguments.without, rest))
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda name: run(name, arguments.seed, arguments.out), arguments.variants))
    data = ["data=permutation_product", f"seed={arguments.seed}", "batch_size=500"]
    found = {}
    for trained in runs:
        accuracy = score_on_test(trained, data, trained.folder / "evaluation")
        found[trained.label] = {"accuracy": round(100 * accuracy, 1), "switches": trained.summary["stage_switches"]}
    print(json.dumps(found))


def train_here(variant: str, overrides: Sequence[str]) -> int:
    """Trains a variant in this process. Returns the exit code."""
    # Imported here, since the process that compares the variants does not train.
    from coconut_ds.train import main as train_main

    with PATCHES[variant]():
        return train_main(list(overrides))


def run(variant: str, seed: int, out: Path) -> TrainedRun:
    """Trains a variant in another process, whose output goes to a file."""
    name = variant.replace(" ", "_").replace("'", "")
    overrides = [*TASK, "method=coconut", f"run.name={name}", f"run.seed={seed}", text_override("run.save_path", out)]
    overrides += OVERRIDES.get(variant, [])
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}-seed_{seed}.txt").open("a", encoding="utf-8", buffering=1) as log:
        done = launch_run(variant, overrides, log.write, start="plain", program=[__file__, "--without", variant])
    sys.stderr.write(f"{variant}: {done.duration_s:.0f} s\n")
    return done


if __name__ == "__main__":
    main()
