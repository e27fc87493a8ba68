"""Scores of an evaluation, and the accuracies of shortcuts on the same problems.

Intervals are at 95 %, over problems (``statistics.mean_of``). If no problem has an answer, the scores contain only
counts and lengths. Graph problems whose graph cannot be used count for the accuracy, but have no category and do not
count for the shortcuts. With several samples, lengths, categories and shares of texts are those of all samples, and the
accuracy of a problem is the share of its samples that are right.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from coconut_ds.data.graph_answers import CATEGORY_NAMES, Category, has_usable_graph, is_graph_problem, shortcuts
from coconut_ds.data.problem import Problem
from coconut_ds.evaluation.picture import BudgetPoint
from coconut_ds.evaluation.prediction import Evaluation, Prediction
from coconut_ds.evaluation.samples import accuracy_of

BASELINES = {"more_ancestors": "more ancestors", "mentioned_less": "mentioned less"}
"""Shortcuts that ignore paths (``data.graph_answers.shortcuts``), with their names in tables and figures."""


def scores_of(evaluation: Evaluation, problems: Sequence[Problem]) -> dict[str, Any]:
    """Accuracy, related scores and lengths of an evaluation, as plain values for ``scores.json``."""
    judged, everything = evaluation.judged, evaluation.predictions
    scores: dict[str, Any] = {
        "problems": _num_problems(everything),
        "scored": _num_problems(judged),
        "num_thoughts": evaluation.num_thoughts,
        "num_pauses": evaluation.num_pauses,
        "tokens_a_problem": _mean([p.num_tokens for p in everything]),
        "thoughts_a_problem": _mean([p.num_thoughts for p in everything]),
    }
    if evaluation.hops:
        scores["hops"] = {str(hop): one.as_dict() for hop, one in evaluation.hops.items()}
    if not judged:
        return scores | {"accuracy": None}
    by_steps = defaultdict(list)
    for prediction in judged:
        by_steps[prediction.num_steps or 0].append(prediction)
    scores |= accuracy_of(judged)
    scores |= {"steps_match": evaluation.steps_match, "wholly_right": evaluation.wholly_right}
    scores["by_number_of_steps"] = {
        str(count): {"problems": _num_problems(some), **accuracy_of(some)} for count, some in sorted(by_steps.items())
    }
    sorts = Counter(p.category for p in judged if p.category is not None)
    if sorts:
        total = sum(sorts.values())
        scores["categories"] = {str(category): sorts[category] / total for category in Category if sorts[category]}
    known = [problems[index] for index in dict.fromkeys(prediction.index for prediction in judged)]
    unusable = sum(is_graph_problem(problem) and not has_usable_graph(problem) for problem in known)
    scores |= {"unusable_graphs": unusable} if unusable else {}
    return scores | shortcut_accuracies(known)


def shortcut_accuracies(problems: Sequence[Problem]) -> dict[str, Any]:
    """Accuracies of the shortcuts on the problems with usable graphs; an empty dictionary if there are none."""
    graphs = [shortcuts(problem) for problem in problems if has_usable_graph(problem)]
    return {"baselines": {name: _mean([one[name] for one in graphs]) for name in BASELINES}} if graphs else {}


def sweep_point(scores: dict[str, Any]) -> BudgetPoint:
    """The point of the figure for scores that contain an accuracy."""
    return BudgetPoint(
        scores["num_thoughts"] + scores["num_pauses"],
        scores["accuracy"],
        low=scores["accuracy_95"][0],
        high=scores["accuracy_95"][1],
        categories=scores.get("categories", {}),
    )


def score_table(scores: Sequence[dict[str, Any]]) -> str:
    """A table with one row per number of thoughts, then one row per shortcut; categories are the last columns."""
    latents = "pauses" if any(one["num_pauses"] for one in scores) else "thoughts"
    head = [latents, "accuracy", "95%", "steps match", "tokens", "problems"]
    number = scores[0].get("samples", {}).get("number")
    head += [] if number is None else [f"pass@{number}", f"majority of {number}"]
    names = [category for category in Category if any(category in one.get("categories", {}) for one in scores)]
    rows = [[*head, *(CATEGORY_NAMES[name] for name in names)]]
    for one in scores:
        known = one["accuracy"] is not None
        low, high = one.get("accuracy_95", (0.0, 0.0))
        shares = one.get("categories", {})
        rows.append(
            [
                str(one["num_thoughts"] + one["num_pauses"]),
                _percent(one["accuracy"]) if known else "-",
                f"{low * 100:.1f}–{high * 100:.1f}" if known else "-",
                _percent(one["steps_match"]) if known else "-",
                f"{one['tokens_a_problem']:.1f}",
                f"{one['problems']:,}",
                *_shares_of_samples(one, number),
                *(_percent(shares.get(name, 0.0)) for name in names),
            ]
        )
    for key, name in BASELINES.items():
        if "baselines" in scores[0]:
            rows.append([name, _percent(scores[0]["baselines"][key]), *[""] * (len(rows[0]) - 2)])
    return _aligned(rows)


def hop_table(scores: Sequence[dict[str, Any]]) -> str:
    """A table with one row per number of thoughts and hop; empty if no hops were measured."""
    latents = "pauses" if any(one["num_pauses"] for one in scores) else "thoughts"
    rows = [[latents, "hop", "argmax in frontier", "95%", "mass on frontier", "loss", "problems"]]
    for one in scores:
        for hop, found in one.get("hops", {}).items():
            low, high = found["in_frontier_95"]
            rows.append(
                [
                    str(one["num_thoughts"] + one["num_pauses"]),
                    hop,
                    _percent(found["in_frontier"]),
                    f"{low * 100:.1f}–{high * 100:.1f}",
                    _percent(found["mass"]),
                    f"{found['loss']:.3f}",
                    f"{found['problems']:,}",
                ]
            )
    return _aligned(rows) if len(rows) > 1 else ""


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines)


def _num_problems(predictions: Sequence[Prediction]) -> int:
    return len({prediction.index for prediction in predictions})


def _shares_of_samples(scores: Mapping[str, Any], number: int | None) -> list[str]:
    """Coverage and majority vote of this number of samples in percent; none for evaluations without samples."""
    if number is None:
        return []
    if scores["accuracy"] is None:
        return ["-", "-"]
    found = scores["samples"]
    return [_percent(found["coverage"]["share"]), _percent(found["majority_of"][str(number)]["share"])]


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
