"""Effects of changed thoughts on the answers of graph problems, by the number of hops from the root to the target.

Each thought is replaced by its mean over all problems, and by the same thought of another problem, whose answer differs
or, in the control, is the same (``Kind.MEAN`` and ``Kind.PATCH``); later thoughts are recomputed. Means and donors come
from problems of any number of hops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.data.graph_text import graph_text
from coconut_ds.data.problem import Problem
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import OnProgress, Plain
from coconut_ds.probing.effects import Effect, make_effects, rightness
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.reasoner import Reasoner
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring

KINDS = (Kind.MEAN, Kind.PATCH)


@dataclass(frozen=True)
class HopEffects(Plain):
    """The effects of changed thoughts on problems with the same number of hops."""

    hops: int | None
    """Distance of the target from the root, in edges; None: all problems."""
    num_problems: int
    undisturbed: Mean
    """Share of right answers without any change."""
    effects: tuple[Effect, ...]
    """One for each change and thought that a problem allows; ``Effect.right`` is the share of right answers."""


def effects_by_hops(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: OnProgress | None = None,
    scoring: Scoring = EXACT,
) -> list[HopEffects]:
    """Replaces each thought in each problem.

    Args:
        reasoner: the model.
        problems: problems with graphs.
        max_new_tokens: length limit of the generated text, in tokens.
        seed: seed of the random choice of donors.
        progress: see ``OnProgress``; counts trials.
        scoring: the convention that decides which answers are right.

    Returns:
        The effects for all problems, and then for each number of hops; empty if no problem has thoughts.

    Raises:
        DataError: a problem has no graph.
    """
    asked = [graph_text(one, reasoner.card.text_format, f"problem {k}").asked for k, one in enumerate(problems)]
    distances = [one.graph.distances(one.root)[one.target] for one in asked]
    baselines = baselines_of(reasoner, [one.question for one in problems], None, max_new_tokens)
    count = max((len(one.fed) for one in baselines), default=0)
    if not count:
        return []
    changes = [Intervention(kind, thought) for thought in range(1, count + 1) for kind in KINDS]
    made = make_effects(reasoner, baselines, changes, max_new_tokens=max_new_tokens, seed=seed, progress=progress)
    is_right = rightness(reasoner, [one.answer for one in problems], scoring)
    found = []
    for hops in (None, *sorted(set(distances))):
        chosen = [index for index, own in enumerate(distances) if hops in (None, own)]
        undisturbed = mean_of([float(is_right(baselines[index], index)) for index in chosen])
        effects = [effect for one in made if (effect := one.effect(is_right, set(chosen))) is not None]
        found.append(HopEffects(hops, len(chosen), undisturbed, tuple(effects)))
    return found
