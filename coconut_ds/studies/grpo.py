"""``python -m coconut_ds.studies.grpo``: what GRPO adds to a model that thinks, with each kind of exploration.

For each seed, ``coconut`` learns sums of four digits and is stopped half-way, when half of the
validation problems are entirely right in the last stage. From this start, ``objective=grpo`` trains once for each kind
of exploration: 60 iterations of 32 new problems with 16 completions each. Start and results answer the same 1,000 test
problems greedily, and McNemar's exact test compares them problem by problem. ``none`` is the control: without noise in
the thoughts, completions differ by their sampled tokens alone.

The same command continues a study that was stopped. Writes ``table.md`` and the runs to the folder ``--out``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.evaluation.paired import Comparison, compare_predictions
from coconut_ds.files import shell_word, write_whole
from coconut_ds.results import ResultFolder, free_or_own
from coconut_ds.settings.overrides import text_override
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.studies.harness import HarnessError, TrainedRun, score_on_test, study_identity
from coconut_ds.studies.job import RESULT
from coconut_ds.studies.jobs import launch_in, stored_result
from coconut_ds.training.metrics import read_metrics

EVALUATION, TABLE = "evaluation", "table.md"
COMMON = ("run=demo", "data=modular_sum", "model=gpt2_scratch_tiny", "tokenizer=dataset")
HALF = (
    *("training=demo", "size.train=128", "size.valid=200", "max_epochs_per_stage=600", "num_epochs=4000"),
    *("lr=1e-3", "stop_at=0.5", "run.name=half"),
)
"""Settings of the start."""
GRPO = (
    *("objective=grpo", "training=sums_grpo", "size.train=640", "size.valid=500", "max_new_tokens=8"),
    *("num_epochs=3", "grpo.num_generations=16", "run.name=grpo"),
)
KINDS = ("none", "gaussian", "dropout", "svp")
"""The kinds of ``grpo.exploration``."""
FEW = 5
"""Number of iterations over which the first and the last rewards are averaged."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study from the command line and returns the exit code: 1 if a run fails."""
    prepare_streams(outlives_readers=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/compare_grpo"))
    parser.add_argument("--exploration", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=2, help="parallel runs, one core each (%(default)s)")
    parser.add_argument("--half", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for the starts")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for the runs of GRPO")
    options = parser.parse_args(argv)
    try:
        with ThreadPoolExecutor(options.lanes) as pool:
            starts = dict(zip(options.seeds, pool.map(lambda s: start(s, options), options.seeds), strict=True))
            cells = [(seed, kind) for seed in options.seeds for kind in options.exploration]
            runs = dict(zip(cells, pool.map(lambda c: explore(c[0], c[1], starts[c[0]], options), cells), strict=True))
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    table = render_table(starts, runs)
    identity = study_identity(starts=list(starts.values()), runs=list(runs.values()))
    results = free_or_own(ResultFolder(options.out, identity, (TABLE,)), options.out / "table")
    with results.replacing() as out:
        write_whole(out / TABLE, table)
    sys.stdout.write(f"\n{table}\n{shell_word(results.path / TABLE)}\n")
    return 0


def start(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains the start of a seed, and evaluates it."""
    return trained(options.out / f"seed_{seed}" / "half", seed, [*COMMON, *HALF, *options.half])


def explore(seed: int, kind: str, begun: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Trains the start of a seed further with one kind of exploration, and evaluates the result."""
    own = [f"grpo.exploration={kind}", text_override("load_model_path", begun["checkpoint"])]
    return trained(options.out / f"seed_{seed}" / kind, seed, [*COMMON, *GRPO, *own, *options.set])


def trained(folder: Path, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Trains one run and evaluates its last checkpoint; returns the stored result if there is one.

    ``result.json`` is written last, so that it marks a finished run.
    """
    overrides = [*settings, f"run.seed={seed}"]
    results = free_or_own(ResultFolder(folder, study_identity(overrides=overrides), (RESULT,)))
    folder = results.path
    kept = stored_result(folder / RESULT, overrides) if results.is_finished else None
    if kept is not None:
        return kept
    label = f"{folder.parent.name}/{folder.name}"
    run = launch_in(results, label, overrides, SweepConfig(threads=1))
    accuracy = score_on_test(run, ["data=modular_sum", f"seed={seed}", "batch_size=500"], folder / EVALUATION)
    result = {
        "overrides": overrides,
        "accuracy": accuracy,
        "checkpoint": run.checkpoint,
        "predictions": str(folder / EVALUATION),
        "updates": run.summary["updates"],
        "duration_s": round(run.duration_s, 1),
        "rewards": first_and_last(run),
        **results.identity.as_dict(),
    }
    write_whole(folder / RESULT, json.dumps(result, indent=2) + "\n")
    sys.stdout.write(f"{label}: {accuracy:.1%} in {run.duration_s:.0f} s\n")
    return result


def first_and_last(run: TrainedRun) -> list[float] | None:
    """Mean rewards of the first and of the last iterations; None if the run has none."""
    lines = read_metrics(run.folder / "metrics.jsonl")
    rewards = [line["train/reward"] for line in lines if "train/reward" in line]
    return [statistics.mean(rewards[:FEW]), statistics.mean(rewards[-FEW:])] if rewards else None


def render_table(starts: Mapping[int, Mapping[str, Any]], runs: Mapping[tuple[int, str], Mapping[str, Any]]) -> str:
    """The results in Markdown: one row for the starts and one for each kind of exploration."""
    seeds = list(starts)
    lines = [
        f"| `grpo.exploration=` | mean | {' | '.join(f'seed {seed}' for seed in seeds)} | largest p | mean reward "
        "| seconds |",
        f"|---|---|{'---|' * len(seeds)}---|---|---|",
        f"| start | {_accuracies(list(starts.values()))} | | | {_seconds(list(starts.values()))} |",
    ]
    for kind in dict.fromkeys(kind for _, kind in runs):
        results = [runs[seed, kind] for seed in seeds]
        largest = max(_against(starts[seed], runs[seed, kind]).p_value for seed in seeds)
        rewards = [statistics.mean(result["rewards"][end] for result in results) for end in (0, 1)]
        lines.append(
            f"| `{kind}` | {_accuracies(results)} | {largest:.1g} | {rewards[0]:.2f} → {rewards[1]:.2f} "
            f"| {_seconds(results)} |"
        )
    lines += ["", "Each run against its start, on the same problems:", ""]
    lines += [
        f"* seed {seed}, `{kind}`: {one.only_second} problems gained, {one.only_first} lost, p = {one.p_value:.1g}"
        for (seed, kind), one in ((cell, _against(starts[cell[0]], result)) for cell, result in runs.items())
    ]
    return "\n".join(lines) + "\n"


def _against(begun: Mapping[str, Any], result: Mapping[str, Any]) -> Comparison:
    return compare_predictions(Path(begun["predictions"]), Path(result["predictions"]))


def _accuracies(results: Sequence[Mapping[str, Any]]) -> str:
    scores = [100 * result["accuracy"] for result in results]
    return f"{statistics.mean(scores):.1f} | {' | '.join(f'{score:.1f}' for score in scores)}"


def _seconds(results: Sequence[Mapping[str, Any]]) -> str:
    return f"{statistics.median(result['duration_s'] for result in results):.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
