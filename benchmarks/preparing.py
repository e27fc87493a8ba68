"""Times what the preparing thread does for one update: laying out 128 problems, planning and collating them.

``python benchmarks/preparing.py [--rounds 200] [--data FILE] [--tokenizer NAME] [--json]``. The thread holds Python's
interpreter meanwhile, so the thread that launches the passes may wait for it. Problems and tokenizer are those of
``benchmarks/training.py``. Each line is the median over the rounds, each with other problems, of the thread's CPU time:

* ``together``: as in training; the sequences of the batch are made together (``methods/templates.py``).
* ``mixed``: the same with ``training.uniform_prob=0.5``, which draws a stage for each problem.
* ``one by one``: the sequences are made by ``lay_out``, as for a method that does not state its ``unit``.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from benchmarks.training_workload import GLOBAL_BATCH, problems_of
from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.tokens import add_markers, tokenize
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.collate import Collator
from coconut_ds.settings import TrainingConfig
from coconut_ds.training.batches import BatchGeometry, plan_update

STAGE, MICRO_BATCH = 3, 32
MIXES = {"together": 0.0, "mixed": 0.5}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="batches to prepare in each way")
    parser.add_argument("--data", help="file of problems")
    parser.add_argument("--tokenizer", help="name or folder of a tokenizer")
    parser.add_argument("--json", action="store_true", help="print only the last line, as JSON")
    arguments = parser.parse_args()
    problems, tokenizer, source = problems_of(arguments.data, arguments.tokenizer)
    markers, _ = add_markers(tokenizer)
    tokens = tokenize(tokenizer, problems)
    arrays = ProblemArrays([arrays_of(tokens)], ())
    collator, geometry = Collator(int(tokenizer.eos_token_id)), BatchGeometry(GLOBAL_BATCH, MICRO_BATCH, 4, 1)
    makers = {
        name: Sequences(TrainingConfig(uniform_prob=share), 0, METHODS["coconut"], CurriculumSpec(1, 6), markers)
        for name, share in MIXES.items()
    }

    def prepare(name: str, epoch: int, indices: list[int]) -> int:
        """Prepares one global batch; returns its number of tokens."""
        if name == "one by one":
            one = makers["together"].one_for_training
            layouts = Layouts.of([one(epoch, STAGE, index, arrays[index]) for index in indices])
        else:
            layouts = makers[name].for_training(epoch, STAGE, arrays, indices)
        for batch in plan_update(layouts, geometry, 0, "token"):
            collator(batch.layouts, batch.weights, batch.num_thoughts, batch.num_targets)
        return len(layouts.input_ids)

    names, draw = [*MIXES, "one by one"], random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        indices = draw.sample(range(len(arrays)), GLOBAL_BATCH)
        for name in names:
            began = time.thread_time()
            prepare(name, number, indices)
            times[name].append(1000 * (time.thread_time() - began))
    found = {name: round(statistics.median(values), 2) for name, values in times.items()}
    about = {
        "problems": GLOBAL_BATCH,
        "tokens_a_problem": round(prepare("together", 0, list(range(GLOBAL_BATCH))) / GLOBAL_BATCH),
        "data": source,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if not arguments.json:
        sys.stdout.write("".join(f"{name:<12}{found[name]:8.2f} ms\n" for name in names))
    sys.stdout.write(json.dumps({"milliseconds": found, **about}) + "\n")


if __name__ == "__main__":
    main()
