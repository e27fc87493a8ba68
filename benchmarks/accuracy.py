"""The demo's accuracy with and without each optimisation of the latent loop: speed must not cost what is learned.

    python benchmarks/accuracy.py          # 2 CPU cores, two runs at a time: a quarter of an hour

Trains ``coconut`` as ``make demo`` does (products of permutations), once as it is and once without each optimisation,
and scores the last checkpoint on the 1,000 problems that nobody trained on. Sums are rounded in another order without
an optimisation, so curves part after some hundred updates; what they come to must not. The last line is JSON: accuracy
in percent, and the epochs in which stages began.
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

from coconut_ds.studies.demo import TASK
from coconut_ds.studies.harness import TrainedRun, launch_run, quoted, score_on_test

PATCHES: dict[str, Callable[[], Any]] = {
    "as it is": nullcontext,
    "transformers' cache": lambda: patch("coconut_ds.model.passes.takes_attention", lambda model: False),
    "whole last layer": lambda: patch("coconut_ds.model.last_layer.LastLayer.only", lambda self, read: nullcontext()),
    "slow activation": lambda: patch("coconut_ds.model.latent_loop.fuse_activations", lambda model: None),
    "unsorted micro batches": lambda: patch("coconut_ds.training.batches.sorted", lambda rows, key: rows, create=True),
    "layers computed again": nullcontext,
}
OVERRIDES = {
    "unsorted micro batches": ["batch_size_training=16"],
    "layers computed again": ["activation_checkpointing=true"],
}


def main() -> None:
    """Command line."""
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
    for one in runs:
        accuracy = score_on_test(one, data, one.folder / "evaluation")
        found[one.label] = {"accuracy": round(100 * accuracy, 1), "switches": one.summary["stage_switches"]}
    print(json.dumps(found))


def train_here(variant: str, overrides: Sequence[str]) -> int:
    """Trains in this process."""
    # Imported here, since the process that compares variants trains nothing.
    from coconut_ds.train import main as train_main

    with PATCHES[variant]():
        return train_main(list(overrides))


def run(variant: str, seed: int, out: Path) -> TrainedRun:
    """Trains in another process; its lines go to a file."""
    name = variant.replace(" ", "_").replace("'", "")
    overrides = [*TASK, "method=coconut", f"run.name={name}", f"run.seed={seed}", f"run.save_path={quoted(out)}"]
    overrides += OVERRIDES.get(variant, [])
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.txt").open("w", encoding="utf-8", buffering=1) as log:
        done = launch_run(variant, overrides, log.write, with_deepspeed=False, program=[__file__, "--without", variant])
    sys.stderr.write(f"{variant}: {done.duration_s:.0f} s\n")
    return done


if __name__ == "__main__":
    main()
