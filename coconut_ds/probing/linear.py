"""Linear probes: what a linear classifier can read from a hidden state, compared with the model's own LM head.

A probe is a logistic regression on the standardised state, fit on one set of problems and scored on another (Alain and
Bengio 2016, arXiv 1610.01644). An accurate probe shows that the state contains the label, not that the model uses it.
The controls are the same probe fit to shuffled labels (Hewitt and Liang 2019, arXiv 1909.03368), always guessing the
most common label, and the states of models without thoughts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from torch import Tensor

from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.generation.decoding import token_id
from coconut_ds.parts import Parts, in_parts, on_another_thread
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Plain
from coconut_ds.probing.labels import labels_of
from coconut_ds.probing.states import States, layer_states
from coconut_ds.reasoner import Reasoner

BEFORE_TEXT = "before the text"
"""Name of the state from which the first token of the text is chosen."""
MAX_ITERATIONS = 2000
"""Iteration limit of the solver of the logistic regression."""


@dataclass(frozen=True)
class ProbeScore(Plain):
    """How well one label can be read from one state. All accuracies are on problems that the probes were not fit on."""

    state: str
    """Name of the state: ``thought 1``, ``thought 2``, … or ``before the text``."""
    label: str
    """Name of the label, for example ``step 1`` or ``answer``."""
    probe: Mean
    """Accuracy of the probe."""
    shuffled: Mean
    """Accuracy of a probe that was fit to shuffled labels."""
    majority: float
    """Accuracy of always guessing the most common label of the problems that the probe was fit on."""
    lens: Mean | None
    """Share of problems for which the LM head gives the right label a higher probability than all other labels; None if
    a label is not a single token, or two labels share a token."""
    lens_top: Mean | None
    """Share of problems for which the right label is the LM head's likeliest token of the whole vocabulary."""
    num_labels: int
    """Number of different values of the label."""
    num_fit: int
    """Number of problems that the probe was fit on."""
    num_scored: int
    """Number of problems that the probe was scored on."""


@in_parts
def linear_probes(
    reasoner: Reasoner,
    fit: Sequence[Problem],
    scored: Sequence[Problem],
    *,
    n_thoughts: int | None = None,
    layer: int = -1,
    seed: int = 0,
) -> Parts[list[ProbeScore]]:
    """Fits and scores a probe for every combination of a state and a label.

    Args:
        reasoner: the model.
        fit: problems to fit the probes on.
        scored: problems to score the probes on; none of them may be in ``fit``.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        layer: layer whose states are read; -1 is the last one, whose states are the thoughts, before any feed.
        seed: seed of the shuffle of the labels.

    Raises:
        DataError: a question is in both sets, or the problems have different numbers of thoughts.
    """
    shared = {p.question for p in fit} & {p.question for p in scored}
    if shared:
        raise DataError(f"linear probes: {len(shared)} questions are in both sets, e.g. {min(shared)!r}")
    everything = [*fit, *scored]
    features = yield from _features.parts(reasoner, everything, n_thoughts, layer)
    count = features.shape[1] - 1
    names = [*(f"thought {number}" for number in range(1, count + 1)), BEFORE_TEXT]
    scores = []
    for label, values in labels_of(everything).items():
        tokens = _label_tokens(reasoner, sorted(set(values)))
        for place, name in enumerate(names):
            states, split = features[:, place], len(fit)
            # A fit does not need the model, and may take seconds.
            fits = partial(_probe_accuracies, states, values, split, seed)
            probe, shuffled, majority = yield from on_another_thread(fits)
            lens, lens_top = (
                _head_accuracies(reasoner, states[split:], values[split:], tokens) if tokens else (None, None)
            )
            sizes = len(set(values)), split, len(scored)
            scores.append(ProbeScore(name, label, probe, shuffled, majority, lens, lens_top, *sizes))
    return scores


@in_parts
def probed_states(
    reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int | None, layer: int
) -> Parts[list[Tensor]]:
    """[L + 1, D] for each problem: the states of its thoughts and the state before the text, at one layer."""
    known = yield from baselines_of.parts(reasoner, [p.question for p in problems], n_thoughts, max_new_tokens=1)
    states: list[States] = yield from layer_states.parts(
        reasoner, [one.case for one in known], [one.fed for one in known]
    )
    return [one.layers[layer] for one in states]


@in_parts
def _features(reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int | None, layer: int) -> Parts[Tensor]:
    """[problems, L + 1, D] the states of ``probed_states`` of problems with equal numbers of thoughts."""
    states = yield from probed_states.parts(reasoner, problems, n_thoughts, layer)
    counts = sorted({len(one) for one in states})
    if len(counts) > 1:
        raise DataError(
            f"linear probes: problems have {counts[0] - 1} to {counts[-1] - 1} thoughts, expected equal numbers"
        )
    return torch.stack(states)


def _probe_accuracies(states: Tensor, values: Sequence[str], split: int, seed: int) -> tuple[Mean, Mean, float]:
    """Accuracies of a probe, of a probe fit to shuffled labels, and of always guessing the most common label.

    The first ``split`` states are for the fit, the others for scoring.
    """
    # Imported here, because that takes seconds, and the server and most modes of probing fit no probes.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

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


def _label_tokens(reasoner: Reasoner, values: Sequence[str]) -> dict[str, int]:
    """The token of each label; empty if a label is not a single token, or if two labels have the same token."""
    try:
        tokens = {value: token_id(reasoner.backbone.tokenizer, value) for value in values}
    except DataError:
        return {}
    return tokens if len(set(tokens.values())) == len(tokens) else {}


@torch.no_grad()
def _head_accuracies(
    reasoner: Reasoner, states: Tensor, values: Sequence[str], tokens: dict[str, int]
) -> tuple[Mean, Mean]:
    """How often the LM head gives the right label the highest logit: among all labels, and among all tokens."""
    loop = reasoner.loop
    logits = loop.head(states.to(loop.device, loop.model.dtype)).cpu()
    right = torch.tensor([tokens[value] for value in values])
    ids = torch.tensor(list(tokens.values()))
    among = ids[logits[:, ids].argmax(dim=-1)] == right
    top = logits.argmax(dim=-1) == right
    return mean_of(among.float().tolist()), mean_of(top.float().tolist())
