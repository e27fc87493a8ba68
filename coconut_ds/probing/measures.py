"""What a data set says about a checkpoint's thoughts: answers after k thoughts, linear probes, effects of changes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from coconut_ds.data.problem import Problem
from coconut_ds.evaluation.statistics import Mean
from coconut_ds.probing import figures
from coconut_ds.probing.answers import SweepPoint, sweep
from coconut_ds.probing.cases import OnProgress, Plain
from coconut_ds.probing.effects import Effect, measure_effects
from coconut_ds.probing.export import row_of, write_csv, write_json
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.linear import ProbeScore, linear_probes
from coconut_ds.reasoner import Reasoner

STANDARD = (Kind.ZERO, Kind.MEAN, Kind.NOISE, Kind.RANDOM, Kind.PATCH)
"""Changes that are made to every thought."""


@dataclass(frozen=True)
class Measured(Plain):
    """What a data set says about a checkpoint's thoughts."""

    points: tuple[SweepPoint, ...]
    probes: tuple[ProbeScore, ...]
    effects: tuple[Effect, ...]
    """Empty where the model does not think."""


def measure_checkpoint(
    reasoner: Reasoner,
    fit: Sequence[Problem],
    scored: Sequence[Problem],
    draws: int,
    seed: int,
    max_new_tokens: int = 128,
) -> Measured:
    """All of a data set's measures; probes are fit on the first problems, everything is scored on the second."""
    questions, known = [p.question for p in scored], [p.answer for p in scored]
    count = reasoner.card.num_latents
    changes = [Intervention(kind, thought, draws=draws) for thought in range(1, count + 1) for kind in STANDARD]
    with progress_bar("answers after k thoughts") as progress:
        points = sweep(reasoner, scored, max_new_tokens=max_new_tokens, progress=progress)
    probes = linear_probes(reasoner, fit, scored, seed=seed)
    with progress_bar("changed thoughts") as progress:
        found = measure_effects(
            reasoner, questions, changes, known, max_new_tokens=max_new_tokens, seed=seed, progress=progress
        )
    return Measured(tuple(points), tuple(probes), tuple(found))


def write_measured(made: Measured, out: Path, title: str) -> None:
    """As JSON, CSV and PNG."""
    write_json(out / "effects.json", made)
    write_csv(out / "sweep.csv", [row_of(one) for one in made.points])
    write_csv(out / "probes.csv", [row_of(one) for one in made.probes])
    figures.draw_sweep_points(made.points, out / "sweep.png", f"Answers after k thoughts: {title}")
    figures.draw_probes(made.probes, out / "probes.png", f"What can be read from each state: {title}")
    if made.effects:
        write_csv(out / "effects.csv", [row_of(one) for one in made.effects])
        figures.draw_effects(made.effects, out / "effects.png", f"Changed thoughts: {title}")


def summary(made: Measured) -> str:
    """Tables for a terminal and for Markdown: shares in percent, with 95 % intervals."""
    numbers = [str(point.num_thoughts) for point in made.points]
    rows = [
        ["right, by itself", *(percent(point.right) for point in made.points)],
        ["right, forced", *(percent(point.forced_right) for point in made.points)],
    ]
    states = list(dict.fromkeys(one.state for one in made.probes))
    found = _table(["after k thoughts", *numbers], rows) + "\n" + _table(["state", *states], _probe_rows(made.probes))
    return found + ("\n" + _table(["change", *states[:-1]], _effect_rows(made.effects)) if made.effects else "")


def _probe_rows(probes: Sequence[ProbeScore]) -> list[list[str]]:
    labels = list(dict.fromkeys(one.label for one in probes))
    own = {label: [one for one in probes if one.label == label] for label in labels}
    rows = [[f"probe finds {label}", *(percent(one.probe) for one in own[label])] for label in labels]
    return rows + [[f"head shows {label}", *(percent(one.lens) for one in own[label])] for label in labels]


def _effect_rows(found: Sequence[Effect]) -> list[list[str]]:
    rows = []
    thoughts = sorted({one.thought for one in found})
    for name in dict.fromkeys(one.name for one in found):
        own = {one.thought: one for one in found if one.name == name}
        kept = [own[thought].kept if thought in own else None for thought in thoughts]
        became = [own[thought].became_donors if thought in own else None for thought in thoughts]
        rows.append([f"{name}: stay", *map(percent, kept)])
        if any(became):
            rows.append([f"{name}: become the donor's", *map(percent, became)])
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(mean: Mean | None) -> str:
    """A share in percent with its interval."""
    return "–" if mean is None else f"{100 * mean.estimate:.0f} ({100 * mean.low:.0f}–{100 * mean.high:.0f})"


@contextmanager
def progress_bar(name: str) -> Iterator[OnProgress]:
    """A bar on a terminal, and what moves it."""
    with tqdm(desc=name, leave=False, disable=None) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
