"""Compares a curriculum that follows accuracy with stages of fixed length: updates until the last stage is solved.

``python benchmarks/curriculum.py [--seeds 0 1 2] [--lanes 2]``. Each run trains ``coconut`` with the configuration
``training=demo`` until 99 % of the validation problems are completely right in the last stage, or until its epochs are
used up. Results are stored in ``--out``; a new start skips runs that are already there. The number of updates does not
depend on the machine.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from coconut_ds.results import ResultFolder, free_or_own, places_to_read
from coconut_ds.settings.overrides import text_override
from coconut_ds.studies.harness import launch_run, study_identity

COMMON = ("run=demo", "tokenizer=dataset", "training=demo", "stop_at=0.99")
TASKS = {
    "modular_sum": ("model=gpt2_scratch_tiny", "data=modular_sum", "max_latent_stage=3", "num_epochs=60"),
    "graphs": (
        *("model=gpt2_scratch_tiny_2layer", "data=synthetic_tiny", "max_latent_stage=2", "num_epochs=60"),
        *("global_batch_size=64", "batch_size_training=64"),
    ),
}
RULES = {
    "accuracy": ("advance=accuracy", "max_epochs_per_stage=null"),
    **{f"{n} epochs": ("advance=epochs", f"epochs_per_stage={n}") for n in (2, 4, 6, 8, 12)},
}


def run(task: str, rule: str, seed: int, out: Path) -> dict[str, Any]:
    """Trains one run and stores its result; returns the stored result if there is one with the same overrides.

    A result with other overrides or of other code is kept; the new one gets a folder beside it.
    """
    overrides = [*COMMON, *TASKS[task], *RULES[rule], f"run.seed={seed}"]
    plain = out / task / rule.replace(" ", "_") / f"seed_{seed}"
    results = free_or_own(ResultFolder(plain, study_identity(overrides=overrides), ("result.json",)))
    for place in places_to_read(results, plain):
        if (place / "result.json").is_file():
            stored: dict[str, Any] = json.loads((place / "result.json").read_text(encoding="utf-8"))
            # The last override is the folder of the run.
            if stored["overrides"][:-1] == overrides:
                return stored
    folder = results.path
    path = folder / "result.json"
    overrides.append(text_override("run.save_path", folder))
    results.take()
    with (folder / "log.txt").open("w", encoding="utf-8", buffering=1) as log:
        done = launch_run(f"{task}, {rule}, seed {seed}", overrides, log.write, start="plain")
    last = done.evaluations()[-1]
    result = {
        "overrides": overrides,
        "solved": last["eval/wholly_right"] >= 0.99,
        "updates": done.summary["updates"],
        "stage": last["eval/stage"],
        "wholly_right": last["eval/wholly_right"],
        "duration_s": round(done.duration_s, 1),
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/curriculum"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=2)
    options = parser.parse_args(argv)
    cells = [(task, rule, seed) for task in options.tasks for rule in options.rules for seed in options.seeds]
    with ThreadPoolExecutor(options.lanes) as pool:
        results = dict(zip(cells, pool.map(lambda cell: run(*cell, options.out), cells), strict=True))
    for task in options.tasks:
        print(f"\n| {task}: stages by | solved | updates until solved, median | each seed |\n|---|---|---|---|")
        for rule in options.rules:
            runs = [results[task, rule, seed] for seed in options.seeds]
            solved = [result["updates"] for result in runs if result["solved"]]
            each = ", ".join(
                str(r["updates"]) if r["solved"] else f"not in {r['updates']} (stage {r['stage']})" for r in runs
            )
            median = f"{statistics.median(solved):.0f}" if solved else "–"
            print(f"| {rule} | {len(solved)} of {len(runs)} | {median} | {each} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
