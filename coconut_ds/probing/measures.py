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
from coconut_ds.probing.cases import Plain, Progress
from coconut_ds.probing.effects import Effect, effects
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


def measure(
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
        found = effects(
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
    """Tables for a terminal and for Markdown."""
    lines = ["| thoughts | right, by itself | right, answer forced |", "|---|---|---|"]
    lines += [f"| {p.num_thoughts} | {percent(p.right)} | {percent(p.forced_right)} |" for p in made.points]
    labels = list(dict.fromkeys(one.label for one in made.probes))
    lines += ["", f"| state | {' | '.join(labels)} |", f"|---|{'---|' * len(labels)}"]
    for state in dict.fromkeys(one.state for one in made.probes):
        own = {one.label: one for one in made.probes if one.state == state}
        lines.append(f"| {state}: probe | {' | '.join(percent(own[label].probe) for label in labels)} |")
        lines.append(f"| {state}: head | {' | '.join(percent(own[label].lens) for label in labels)} |")
    if made.effects:
        lines += [
            "",
            "| change | thought | answers that stay | that become the donor's | log p |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {e.name} | {e.thought} | {percent(e.kept)} | {percent(e.became_donors)} | {e.change.estimate:+.2f} |"
            for e in made.effects
        ]
    return "\n".join(lines) + "\n"


def percent(mean: Mean | None) -> str:
    """A share with its interval."""
    return "–" if mean is None else f"{100 * mean.estimate:.1f} ({100 * mean.low:.1f}–{100 * mean.high:.1f})"


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A bar on a terminal, and what moves it."""
    with tqdm(desc=name, leave=False, disable=None) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
