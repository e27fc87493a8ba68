"""Frontiers that linear maps read from thoughts, against ridge regression and rankings by brute force."""

import json
import random
from itertools import pairwise, permutations

import numpy
import pytest
import torch
from making_graphs import FORMATS, make_graph_reasoner, problems_of

from coconut_ds.data.graph_text import graph_text
from coconut_ds.errors import DataError
from coconut_ds.probing import frontier_probes
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.frontier_probes import PENALTIES, readable_frontiers
from coconut_ds.probing.ranking import average_precision, top_is_relevant
from coconut_ds.probing.ridge import RidgeFit


def slow_scores(states, targets, others, penalty):
    """The scores of other states, from the normal equations of ridge regression."""
    mean, scale = states.mean(axis=0), states.std(axis=0)
    scale[scale == 0] = 1
    known, asked = (states - mean) / scale, (others - mean) / scale
    square = known.T @ known + penalty * len(known) * numpy.eye(known.shape[1])
    return asked @ numpy.linalg.solve(square, known.T @ (targets - targets.mean(axis=0))) + targets.mean(axis=0)


def slow_ranking(scores, relevant) -> tuple[float, float]:
    """Both measures, averaged over all orders of the nodes that are sorted by score."""
    tops, precisions = [], []
    for order in permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in pairwise(order)):
            continue
        hits = [bool(relevant[node]) for node in order]
        tops.append(hits[0])
        shares = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
        precisions.append(sum(shares) / len(shares))
    return sum(tops) / len(tops), sum(precisions) / len(precisions)


def test_measures_are_means_over_all_orders_of_equal_nodes():
    rng = random.Random(1)
    for _ in range(40):
        scores = numpy.array([float(rng.randrange(3)) for _ in range(6)])
        relevant = numpy.array([True, *(rng.random() < 0.4 for _ in range(5))])
        rng.shuffle(relevant)
        top, precision = slow_ranking(scores, relevant)
        assert top_is_relevant(scores, relevant) == pytest.approx(top)
        assert average_precision(scores, relevant) == pytest.approx(precision)


@pytest.mark.parametrize("width", [5, 60])
def test_scores_are_those_of_the_normal_equations(width):
    """With fewer and with more components than problems, one of which never varies."""
    rng = numpy.random.default_rng(0)
    states, targets, others = rng.normal(size=(30, width)), rng.normal(size=(30, 4)), rng.normal(size=(7, width))
    states[:, 1] = 2.0
    expected = slow_scores(states, targets, others, 0.3)
    assert RidgeFit(states).scores(others, targets, 0.3) == pytest.approx(expected)


@pytest.mark.parametrize(("form", "c_thought"), [("text", 1), ("symbolic", 2)])
def test_every_ranking_against_one_problem_at_a_time(form, c_thought):
    """States that the engine fed back, maps from normal equations, and rankings of single problems."""
    problems = problems_of(form, 16)
    latents = 2 * c_thought
    reasoner = make_graph_reasoner(form, problems, num_thoughts=latents, c_thought=c_thought)
    fit, scored = problems[:10], problems[10:]
    found = readable_frontiers(reasoner, fit, scored, seed=4)
    assert (found.num_fit, found.num_scored) == (10, 6)
    names = sorted({name for one in problems for name in one.extra["idx_to_symbol"]})
    assert found.num_names == len(names)
    texts = [graph_text(one, FORMATS[form]) for one in problems]
    fed = [one.fed.numpy() for one in baselines_of(reasoner, [one.question for one in problems], max_new_tokens=1)]
    assert [(one.thought, one.hop) for one in found.hops] == [(i, j) for i in range(1, latents + 1) for j in (1, 2)]

    def targets(hop, chosen):
        return numpy.array([[name in [t.symbols[n] for n in t.frontier(hop)] for name in names] for t in chosen], float)

    def fitted(thought, known, wanted, penalty):
        states = numpy.array([one[thought - 1] for one in fed], float)
        return slow_scores(states[: len(known)], known, states[wanted], penalty)

    def measured(scores, hop, chosen):
        own = [[row[names.index(symbol)] for symbol in text.symbols] for row, text in zip(scores, chosen, strict=True)]
        return by_nodes(own, hop, chosen)

    def by_nodes(scores, hop, chosen):
        pairs = []
        for row, text in zip(scores, chosen, strict=True):
            relevant = numpy.array([node in text.frontier(hop) for node in range(text.graph.num_nodes)])
            if relevant.any():
                pairs.append(
                    (top_is_relevant(numpy.array(row), relevant), average_precision(numpy.array(row), relevant))
                )
        return [sum(values) / len(values) for values in zip(*pairs, strict=True)], len(pairs)

    order = numpy.random.default_rng(4).permutation(10)
    for one in found.hops:
        thought, hop = one.thought, one.hop
        assert one.is_own == (hop == (thought - 1) // c_thought + 1)
        known = targets(hop, texts[:10])
        precisions = {
            penalty: measured(fitted(thought, known[:8], slice(8, 10), penalty), hop, texts[8:10])[0]
            for penalty in PENALTIES
        }
        best = max(values[1] for values in precisions.values())
        assert precisions[one.penalty][1] == pytest.approx(best)
        sources = {
            "thought_state": fitted(thought, known, slice(10, 16), one.penalty),
            "shuffled": fitted(thought, known[order], slice(10, 16), one.penalty),
        }
        for name, scores in sources.items():
            expected, count = measured(scores, hop, texts[10:])
            assert count == one.num_scored
            ranking = getattr(one, name)
            assert [ranking.in_frontier.estimate, ranking.precision.estimate] == pytest.approx(expected, abs=0.02), name
        chance = by_nodes([[0.0] * text.graph.num_nodes for text in texts[10:]], hop, texts[10:])[0]
        assert [one.chance.in_frontier.estimate, one.chance.precision.estimate] == pytest.approx(chance)
        assert one.mentions == next(other.mentions for other in found.hops if other.hop == hop)
        first = next(other for other in found.hops if (other.thought, other.hop) == (1, hop))
        assert one.before_thinking == (None if thought == 1 else first.thought_state)
    json.dumps(found.as_dict(), allow_nan=False)
    with pytest.raises(DataError, match="6 questions are in both sets"):
        readable_frontiers(reasoner, problems, scored)


def test_nodes_that_are_mentioned_alike_get_their_share_of_frontier_nodes():
    problems = problems_of("arrows", 9)
    reasoner = make_graph_reasoner("arrows", problems)
    (one, *_) = readable_frontiers(reasoner, problems[:6], problems[6:]).hops
    texts = [graph_text(problem, FORMATS["arrows"]) for problem in problems]

    def alike(text, node, other, its):
        def key(graph, asked, node):
            begins, ends = (sum(edge[side] == node for edge in graph.edges) for side in (0, 1))
            return begins, ends, node == asked.root, node in (asked.target, asked.distractor)

        return key(text.graph, text.asked, node) == key(other.graph, other.asked, its)

    tops = []
    for text in texts[6:]:
        shares = []
        for node in range(text.graph.num_nodes):
            same = [
                its in other.frontier(1)
                for other in texts[:6]
                for its in range(other.graph.num_nodes)
                if alike(text, node, other, its)
            ]
            every = [its in other.frontier(1) for other in texts[:6] for its in range(other.graph.num_nodes)]
            same = same or every
            shares.append(sum(same) / len(same))
        relevant = numpy.array([node in text.frontier(1) for node in range(text.graph.num_nodes)])
        tops.append(top_is_relevant(numpy.array(shares), relevant))
    assert one.mentions.in_frontier.estimate == pytest.approx(sum(tops) / len(tops))


def test_a_thought_that_holds_its_frontier_is_read_and_its_controls_are_not(monkeypatch):
    """The second of two states is the sum of a direction for each node of the second frontier, with noise."""
    problems = problems_of("symbolic", 260)
    reasoner = make_graph_reasoner("symbolic", problems[:3])
    names = sorted({name for one in problems for name in one.extra["idx_to_symbol"]})
    rng = numpy.random.default_rng(0)
    directions = rng.normal(size=(len(names), 64))

    def given(reasoner, chosen, n_thoughts, layer):
        found = []
        for one in chosen:
            text = graph_text(one, FORMATS["symbolic"])
            held = sum(directions[names.index(text.symbols[node])] for node in text.frontier(2))
            found.append(torch.tensor(rng.normal(size=(3, 64)) * 0.3))
            found[-1][1] += torch.tensor(held)
        return found

    monkeypatch.setattr(frontier_probes, "probed_states", given)
    found = {(one.thought, one.hop): one for one in readable_frontiers(reasoner, problems[:200], problems[200:]).hops}
    held = found[2, 2]
    assert held.thought_state.in_frontier.estimate > 0.95
    for control in (held.before_thinking, held.shuffled, held.chance, found[2, 1].thought_state):
        assert control.in_frontier.estimate < 0.4
