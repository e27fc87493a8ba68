"""``make demo``: three methods learn the same task from scratch on a CPU; do thoughts matter?

Products of permutations of three elements, a one-layer model. ``coconut`` and ``no_thoughts`` follow the same
curriculum (a stage ends when it is mastered, or after ten epochs), ``no_cot`` trains on answers alone, all for the same
number of updates, each under the real ``deepspeed`` launcher. Accuracies are those of 1,000 problems never trained on,
in the last stage, where no step is written any more. Results go to ``outputs/demo``.
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

from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.studies.harness import HarnessError, TrainedRun, data_overrides, launch_run, quoted, score_on_test

METHODS = ("coconut", "no_thoughts", "no_cot")
STAGED = METHODS[:2]
"""Those with a curriculum."""
TASK = ("run=demo", "data=permutation_product", "model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo")
CHANCE = 1 / 6
"""Six permutations."""
SHOWN = 5
"""Problems shown with their decoded thoughts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("overrides", nargs="*", help="further overrides for all three runs, e.g. num_epochs=10")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    common = [f"run.seed={arguments.seed}", f"run.save_path={quoted(out / 'runs')}", *arguments.overrides]
    try:
        runs = train_all(common)
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    trained_s = time.perf_counter() - started
    data = ["data=permutation_product", f"seed={arguments.seed}", "batch_size=500"]
    data += data_overrides(arguments.overrides)
    accuracies = {method: score_on_test(run, data, out / "evaluation" / method) for method, run in runs.items()}
    draw_curves(list(runs.values()), out / "accuracy.png")
    sentence = what_it_shows(accuracies)
    summary = {
        **{method: round(accuracy, 4) for method, accuracy in accuracies.items()},
        "chance": round(CHANCE, 4),
        "seed": arguments.seed,
        "updates": {method: run.summary["updates"] for method, run in runs.items()},
        "stage_switches": {method: run.summary["stage_switches"] for method, run in runs.items()},
        "durations_s": {
            **{method: round(run.duration_s, 1) for method, run in runs.items()},
            "training": round(trained_s, 1),
            "total": round(time.perf_counter() - started, 1),
        },
        "checkpoints": {method: run.checkpoint for method, run in runs.items()},
        "sentence": sentence,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show_thoughts(runs["coconut"], arguments.seed, arguments.overrides)
    print_result(summary, out)
    return 0


def train_all(common: Sequence[str]) -> dict[str, TrainedRun]:
    """All methods under the deepspeed launcher, two at a time: coconut takes about as long as both others."""
    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(train_lane, methods, common) for methods in (METHODS[:1], METHODS[1:])]
    runs = {run.label: run for lane in lanes for run in lane.result()}
    return {method: runs[method] for method in METHODS}


def train_lane(methods: Sequence[str], common: Sequence[str]) -> list[TrainedRun]:
    """One method after the other; lines are shown with the method in front."""

    def show(method: str, line: str) -> None:
        sys.stdout.write(f"{method:>11} | {line}")
        sys.stdout.flush()

    return [launch_run(m, [*TASK, f"method={m}", f"run.name={m}", *common], partial(show, m)) for m in methods]


def draw_curves(runs: Sequence[TrainedRun], path: Path) -> None:
    """Validation accuracy over updates, with the stages of the curriculum."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    colours = {"coconut": "#0072B2", "no_thoughts": "#D55E00", "no_cot": "#666666"}
    heights = iter((1.16, 1.09))
    for run in runs:
        lines = run.evaluations()
        steps = [line["global_step"] for line in lines]
        colour = colours[run.label]
        axes.plot(steps, [line["eval/accuracy"] for line in lines], label=run.label, color=colour)
        if run.label in STAGED:
            mark_stages(axes, steps, [line["eval/stage"] for line in lines], colour, next(heights))
    axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xlabel="updates", ylabel="accuracy on validation problems", ylim=(-0.02, 1.22))
    axes.set_title("Permutation products (numbers: where each method's stages begin)")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def mark_stages(axes: Any, steps: Sequence[int], stages: Sequence[int], colour: str, height: float) -> None:
    """The number of each stage, above where it begins."""
    for index, stage in enumerate(stages):
        if index == 0 or stage != stages[index - 1]:
            begin = steps[index - 1] if index else 0
            axes.text(begin, height, str(stage), fontsize=9, color=colour, ha="center", va="center", weight="bold")


def what_it_shows(accuracies: dict[str, float]) -> str:
    """One sentence that the three numbers bear out."""
    coconut, without, direct = (accuracies[method] for method in METHODS)
    numbers = (
        f"coconut {coconut:.1%}, the same curriculum without thoughts {without:.1%}, answers alone {direct:.1%} "
        f"(chance {CHANCE:.1%}), each after as many updates"
    )
    if coconut < 0.95:
        return f"Not solved within the epochs given: {numbers}."
    if without <= 0.6:
        return (
            f"Here the thoughts themselves matter: {numbers}. It shows what this one-layer model learns in that "
            "time with and without the extra passes, not that more would not help, nor that thoughts are steps."
        )
    if without >= coconut - 0.1:
        return f"Here the curriculum does the work, not the thoughts: {numbers}."
    return f"Thoughts help, and the curriculum alone does part of the work: {numbers}."


def show_thoughts(run: TrainedRun, seed: int, overrides: Sequence[str]) -> None:
    """Prints a few test problems with the tokens nearest to each thought."""
    from coconut_ds.evaluation.session import trace_questions

    config = compose_eval_config(
        [f"checkpoint={quoted(run.checkpoint)}", "data=permutation_product", f"seed={seed}", *data_overrides(overrides)]
    )
    sys.stdout.write("\nThoughts through the language model head (nearest token and its probability):\n")
    for traced in trace_questions(config, SHOWN):
        thoughts = "  ".join(f"{t.tokens[0].strip() or '⏎'} {t.probabilities[0]:.2f}" for t in traced.thoughts)
        steps = ", ".join(traced.problem.steps)
        mark = "right" if traced.correct else "wrong"
        sys.stdout.write(f"  {traced.problem.question}  (steps {steps})\n    thoughts: {thoughts}\n")
        sys.stdout.write(f"    answer: {traced.answer} ({mark})\n")


def print_result(summary: dict[str, Any], out: Path) -> None:
    """Accuracies, the sentence, and where everything lies."""
    sys.stdout.write("\naccuracy on 1,000 problems never trained on, no step written:\n")
    for method in METHODS:
        sys.stdout.write(f"  {method:>11}  {summary[method]:6.1%}\n")
    sys.stdout.write(
        f"\n{summary['sentence']}\n\n{out / 'summary.json'}, {out / 'accuracy.png'}; "
        f"{summary['durations_s']['total']:.0f} s in all\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
