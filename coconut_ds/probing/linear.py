"""Linear probes: what can be read from a state by a linear map, beside what the model's own head shows of it.

A probe is a logistic regression on the standardised state, fit on one set of problems and scored on another (Alain and
Bengio 2016, arXiv 1610.01644). That a probe finds a label says that it is there, not that the model uses it. Controls:
the same probe fit to shuffled labels (Hewitt and Liang 2019, arXiv 1909.03368), the commonest label, and the state of
models without thoughts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.generation.decoding import token_id
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Plain
from coconut_ds.probing.labels import labels_of
from coconut_ds.probing.states import States, layer_states
from coconut_ds.reasoner import Reasoner

BEFORE_TEXT = "before the text"
"""Name of the state from which the first token of the text is chosen."""
MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class ProbeScore(Plain):
    """How well one label is read from one state. Shares are of the problems that no probe was fit on."""

    state: str
    """``thought 1`` … or ``before the text``."""
    label: str
    probe: Mean
    """Share of labels that the probe finds."""
    shuffled: Mean
    """The same of a probe that was fit to shuffled labels."""
    majority: float
    """Share of the commonest label of the fit."""
    lens: Mean | None
    """Share of problems where, of all labels, the model's head finds the right one likeliest; None where labels are not
    single tokens."""
    lens_top: Mean | None
    """Share where it is the likeliest of all tokens."""
    num_labels: int
    num_fit: int
    num_scored: int


def linear_probes(
    reasoner: Reasoner,
    fit: Sequence[Problem],
    scored: Sequence[Problem],
    *,
    n_thoughts: int | None = None,
    layer: int = -1,
    seed: int = 0,
) -> list[ProbeScore]:
    """Every state against every label.

    Args:
        reasoner: the model.
        fit: problems that probes are fit on.
        scored: others, on which they are scored.
        n_thoughts: thoughts or pauses; None: the checkpoint's number.
        layer: whose states are read; -1: the last, which thoughts are.
        seed: of the shuffle.

    Raises:
        DataError: a question stands in both sets, or problems have different numbers of thoughts.
    """
    shared = {p.question for p in fit} & {p.question for p in scored}
    if shared:
        raise DataError(f"linear probes: {len(shared)} questions stand in both sets, e.g. {min(shared)!r}")
    everything = [*fit, *scored]
    features = _features(reasoner, everything, n_thoughts, layer)
    count = features.shape[1] - 1
    names = [*(f"thought {number}" for number in range(1, count + 1)), BEFORE_TEXT]
    scores = []
    for label, values in labels_of(everything).items():
        tokens = _tokens(reasoner, sorted(set(values)))
        for place, name in enumerate(names):
            states, split = features[:, place], len(fit)
            probe, shuffled, majority = _probe(states, values, split, seed)
            lens, lens_top = _shown(reasoner, states[split:], values[split:], tokens) if tokens else (None, None)
            sizes = len(set(values)), split, len(scored)
            scores.append(ProbeScore(name, label, probe, shuffled, majority, lens, lens_top, *sizes))
    return scores


def _features(reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int | None, layer: int) -> Tensor:
    """[problems, L + 1, D]"""
    known = baselines_of(reasoner, [p.question for p in problems], n_thoughts, max_new_tokens=1)
    states: list[States] = layer_states(reasoner, [one.case for one in known], [one.fed for one in known])
    counts = sorted({one.layers.shape[1] for one in states})
    if len(counts) > 1:
        raise DataError(
            f"linear probes: problems have {counts[0] - 1} to {counts[-1] - 1} thoughts, expected as many in each"
        )
    return torch.stack([one.layers[layer] for one in states])


def _probe(states: Tensor, values: Sequence[str], split: int, seed: int) -> tuple[Mean, Mean, float]:
    """Found by a probe, by one fit to shuffled labels, and the share of the commonest label."""
    labels, array = numpy.array(values), states.numpy()
    shuffled = numpy.random.default_rng(seed).permutation(labels[:split])
    names, counts = numpy.unique(labels[:split], return_counts=True)
    majority = float((labels[split:] == names[counts.argmax()]).mean())
    if len(names) == 1:
        same = mean_of((labels[split:] == names[0]).astype(float).tolist())
        return same, same, majority
    found = []
    for fitted in (labels[:split], shuffled):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
        guesses = model.fit(array[:split], fitted).predict(array[split:])
        found.append(mean_of((guesses == labels[split:]).astype(float).tolist()))
    return found[0], found[1], majority


def _tokens(reasoner: Reasoner, values: Sequence[str]) -> dict[str, int]:
    """The token of each label; empty where one is not a single token, or two are the same."""
    try:
        tokens = {value: token_id(reasoner.backbone.tokenizer, value) for value in values}
    except DataError:
        return {}
    return tokens if len(set(tokens.values())) == len(tokens) else {}


@torch.no_grad()
def _shown(reasoner: Reasoner, states: Tensor, values: Sequence[str], tokens: dict[str, int]) -> tuple[Mean, Mean]:
    """How often the head finds the label likeliest, of all labels and of all tokens."""
    loop = reasoner.loop
    logits = loop.head(states.to(loop.device, loop.model.dtype)).cpu()
    right = torch.tensor([tokens[value] for value in values])
    ids = torch.tensor(list(tokens.values()))
    among = ids[logits[:, ids].argmax(dim=-1)] == right
    top = logits.argmax(dim=-1) == right
    return mean_of(among.float().tolist()), mean_of(top.float().tolist())
