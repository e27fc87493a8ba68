"""``make demo``: trains three methods from scratch on a CPU, to test whether continuous thoughts help.

The task is to multiply permutations of three elements, and the model has one layer. ``coconut`` and ``no_thoughts``
follow the same curriculum (a stage ends when it is mastered, or after ten epochs); ``no_cot`` is trained only on
answers. All three make the same number of updates, each under the real ``deepspeed`` launcher. Accuracy is measured on
1,000 test problems that are not used in training, with the last checkpoint; by then the model writes only the answer
and no steps. The results are written to ``outputs/demo/seed_<seed>-<signature>``, where the signature is a hash of the
options and the code. The same command finds them once they are complete.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from coconut_ds.cli.logs import set_up_logs
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.errors import ConfigError
from coconut_ds.files import shell_word, write_whole
from coconut_ds.results import ResultFolder
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.settings.overrides import text_override
from coconut_ds.studies.harness import (
    HarnessError,
    TrainedRun,
    data_overrides,
    launch_run,
    score_on_test,
    stored_json,
    study_identity,
)

METHODS = ("coconut", "no_thoughts", "no_cot")
WITH_CURRICULUM = METHODS[:2]
"""The methods that have a curriculum."""
TASK = ("run=demo", "data=permutation_product", "model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo")
CHANCE = 1 / 6
"""Accuracy of guessing: the answer is one of six permutations."""
ROOT = Path("outputs/demo")
SUMMARY = "summary.json"
BEGINNING = """\
Trains three small models on this computer: about four minutes on two free CPU cores. Nothing is downloaded.
Ctrl-C stops it, and the same command continues.
Stages: at each one, another step of the solution is replaced by two thoughts. A stage ends once 95% of the validation
problems are entirely right, or after ten epochs.

"""
NUM_SHOWN = 5
"""Number of test problems that are printed with their decoded thoughts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo from the command line. Returns the exit code: 1 if a training fails, 2 for a folder in use."""
    prepare_streams(outlives_readers=True)
    set_up_logs(verbose=False, level=None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"folder of the results (default: {ROOT}/seed_SEED-SIGNATURE)")
    parser.add_argument("--overwrite", action="store_true", help="run again, and replace the results in the folder")
    parser.add_argument("overrides", nargs="*", help="further overrides for all three runs, e.g. num_epochs=10")
    arguments = parser.parse_args(argv)
    try:
        results = result_folder(arguments)
        results.refuse_other()
        if results.is_finished:
            sys.stdout.write("finished before; these are the stored results (--overwrite runs the demo again)\n")
            print_result(stored_json(results.path / SUMMARY), results.path)
        else:
            run_demo(arguments.seed, arguments.overrides, (arguments.out or ROOT) / "runs", results)
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def result_folder(arguments: argparse.Namespace) -> ResultFolder:
    """The folder of the results: ``--out``, or one named after the seed and the signature."""
    identity = study_identity(
        task=list(TASK), methods=list(METHODS), seed=arguments.seed, overrides=arguments.overrides
    )
    out = arguments.out or ROOT / f"seed_{arguments.seed}-{identity.signature}"
    names = ("accuracy.png", "evaluation", SUMMARY)
    return ResultFolder(out, identity, names, arguments.overwrite, "--out ", "--overwrite")


def run_demo(seed: int, overrides: Sequence[str], runs_folder: Path, results: ResultFolder) -> None:
    """Trains, evaluates, writes the results and prints them.

    Raises:
        HarnessError: a training run failed.
    """
    started, out = time.perf_counter(), results.path
    sys.stdout.write(BEGINNING)
    # A run that is complete would not train again.
    again = ["run.resume_mode=never"] if results.overwrite else []
    runs = train_all([f"run.seed={seed}", text_override("run.save_path", runs_folder), *again, *overrides])
    trained_s = time.perf_counter() - started
    results.take()
    data = ["data=permutation_product", f"seed={seed}", "batch_size=500", *data_overrides(overrides)]
    accuracies = {method: score_on_test(run, data, out / "evaluation" / method) for method, run in runs.items()}
    draw_curves(list(runs.values()), out / "accuracy.png")
    sentence = conclusion(accuracies)
    summary = {
        **{method: round(accuracy, 4) for method, accuracy in accuracies.items()},
        "chance": round(CHANCE, 4),
        "seed": seed,
        "updates": {method: run.summary["updates"] for method, run in runs.items()},
        "stage_switches": {method: run.summary["stage_switches"] for method, run in runs.items()},
        "durations_s": {
            **{method: round(run.duration_s, 1) for method, run in runs.items()},
            "training": round(trained_s, 1),
            "total": round(time.perf_counter() - started, 1),
        },
        "checkpoints": {method: run.checkpoint for method, run in runs.items()},
        "sentence": sentence,
        **results.identity.as_dict(),
    }
    # Written last: this file marks the results as complete.
    write_whole(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    show_thoughts(runs["coconut"], seed, overrides)
    print_result(summary, out)


def train_all(common: Sequence[str]) -> dict[str, TrainedRun]:
    """Trains all methods under the deepspeed launcher, in two lanes: coconut takes about as long as the other two."""
    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(train_lane, methods, common) for methods in (METHODS[:1], METHODS[1:])]
    runs = {run.label: run for lane in lanes for run in lane.result()}
    return {method: runs[method] for method in METHODS}


def train_lane(methods: Sequence[str], common: Sequence[str]) -> list[TrainedRun]:
    """Trains the methods one after the other and prints each line of their output with the method's name in front."""

    def show(method: str, line: str) -> None:
        sys.stdout.write(f"{method:>11} | {line}")
        sys.stdout.flush()

    return [launch_run(m, [*TASK, f"method={m}", f"run.name={m}", *common], partial(show, m)) for m in methods]


def draw_curves(runs: Sequence[TrainedRun], path: Path) -> None:
    """Draws validation accuracy against updates, and marks where the curriculum stages begin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    colours = {"coconut": "#0072B2", "no_thoughts": "#D55E00", "no_cot": "#666666"}
    heights = iter((1.16, 1.09))
    for run in runs:
        lines = run.evaluations()
        steps = [line["global_step"] for line in lines]
        colour = colours[run.label]
        axes.plot(steps, [line["eval/accuracy"] for line in lines], label=run.label, color=colour)
        if run.label in WITH_CURRICULUM:
            mark_stages(axes, steps, [line["eval/stage"] for line in lines], colour, next(heights))
    axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xlabel="updates", ylabel="accuracy on validation problems", ylim=(-0.02, 1.22))
    # The space above 100% has the numbers of the stages.
    axes.set_yticks([step / 5 for step in range(6)])
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_title("Permutation products (the numbers mark where each curriculum stage begins)")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def mark_stages(axes: Any, steps: Sequence[int], stages: Sequence[int], colour: str, height: float) -> None:
    """Writes the number of each curriculum stage above the update at which it begins."""
    for index, stage in enumerate(stages):
        if index == 0 or stage != stages[index - 1]:
            begin = steps[index - 1] if index else 0
            axes.text(begin, height, str(stage), fontsize=9, color=colour, ha="center", va="center", weight="bold")


def conclusion(accuracies: dict[str, float]) -> str:
    """A conclusion in words that the three accuracies support."""
    coconut, without, direct = (accuracies[method] for method in METHODS)
    numbers = (
        f"coconut {coconut:.1%}, the same curriculum without thoughts (no_thoughts) {without:.1%}, training on answers "
        f"only (no_cot) {direct:.1%}; guessing {CHANCE:.1%}; all after the same number of updates"
    )
    if coconut < 0.95:
        return f"coconut did not solve the task in the given number of epochs: {numbers}."
    if without <= 0.6:
        return (
            f"Here the thoughts themselves matter: {numbers}. This shows what this one-layer model learns in this "
            "number of updates with and without the extra forward passes. It does not show that longer training "
            "without thoughts would fail, nor that the thoughts represent the steps."
        )
    if without >= coconut - 0.1:
        return f"Here the curriculum makes the difference, not the thoughts: {numbers}."
    return f"Thoughts help, but part of the gain comes from the curriculum alone: {numbers}."


def show_thoughts(run: TrainedRun, seed: int, overrides: Sequence[str]) -> None:
    """Prints a few test problems, each with its decoded thoughts and the model's answer."""
    from coconut_ds.evaluation.session import trace_questions

    config = compose_eval_config(
        [
            text_override("checkpoint", run.checkpoint),
            "data=permutation_product",
            f"seed={seed}",
            *data_overrides(overrides),
        ]
    )
    sys.stdout.write("\nThoughts of coconut, decoded with the language model head (likeliest token, probability):\n")
    for traced in trace_questions(config, NUM_SHOWN):
        thoughts = "  ".join(f"{t.tokens[0].strip() or '⏎'} {t.probabilities[0]:.0%}" for t in traced.thoughts)
        steps = ", ".join(traced.problem.steps)
        mark = "right" if traced.correct else "wrong"
        sys.stdout.write(f"  {traced.problem.question}  (steps {steps})\n    thoughts: {thoughts}\n")
        sys.stdout.write(f"    answer: {traced.answer} ({mark})\n")


def print_result(summary: dict[str, Any], out: Path) -> None:
    """Prints the accuracies, the conclusion, and the paths of the results."""
    sys.stdout.write("\nAccuracy on 1,000 test problems not used in training; the model writes only the answer:\n")
    for method in METHODS:
        sys.stdout.write(f"  {method:>11}  {summary[method]:6.1%}\n")
    sys.stdout.write(
        f"\n{summary['sentence']}\n\nResults: {shell_word(out / SUMMARY)}, {shell_word(out / 'accuracy.png')}; "
        f"total time {summary['durations_s']['total']:.0f} s\n"
    )
    checkpoint = shell_word(summary["checkpoints"]["coconut"])
    sys.stdout.write(
        "\nNext, after `source .venv/bin/activate`:\n"
        "  make app              look at the thoughts of these models in a browser, and change them\n"
        f"  coconut-eval checkpoint={checkpoint} data=permutation_product n_thoughts=0,2,4,6,8\n"
        "                        accuracy by number of thoughts\n"
        "  coconut-runs list     the runs; README.md continues with real text (run=quick)\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
