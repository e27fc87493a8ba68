"""Layered graphs: a pure function of seed, split, epoch and index; no graph in two splits; no shortcut."""

import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from checking_graphs import check_problem

from coconut_ds.data.graph_stats import graph_stats, question_of
from coconut_ds.data.layered import LayeredGraphs, split_of_graph
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "size": {"train": 1000, "valid": 100, "test": 100},
    "num_nodes": (16, 24),
    "num_layers": (4, 6),
    "num_edges": (24, 40),
    "online": True,
}
SMALL = {"num_nodes": (8, 10), "num_layers": (3, 4), "num_edges": (8, 9)}
LARGE = {"num_nodes": (60, 70), "num_layers": (3, 9), "num_edges": (70, 110)}


def source(**changes: Any) -> LayeredGraphs:
    return LayeredGraphs(**{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def train() -> list[Problem]:
    return source(size={"train": 4000, "valid": 0, "test": 0}).train(0)


def test_every_problem_is_well_formed_and_within_its_ranges(train: list[Problem]) -> None:
    nodes, edges = Counter[int](), Counter[int]()
    for problem in train[:1500]:
        check_problem(problem)
        assert len(problem.steps) >= 2
        nodes[len(problem.extra["idx_to_symbol"])] += 1
        edges[len(problem.extra["edges"])] += 1
    assert set(nodes) == set(range(16, 25)), "both ends of the range, and all between"
    assert set(edges) == set(range(24, 41))


def test_paths_to_the_target_differ_in_length_because_edges_skip_layers(train: list[Problem]) -> None:
    """The steps are a shortest path; the longest one always passes through all layers from root to target."""
    differ = 0
    for problem in train[:500]:
        question = question_of(problem)
        longest: dict[int, int] = {question.root: 0}
        for parent, child in question.graph.edges:
            if parent in longest:
                longest[child] = max(longest.get(child, 0), longest[parent] + 1)
        differ += longest[question.target] > len(problem.steps)
    assert differ > 250


def test_no_shortcut_tells_the_options_apart(train: list[Problem]) -> None:
    """Chance is 0.5 with a standard error below 0.008 at 4,000 problems; 0.03 is almost four of them."""
    stats = graph_stats(train)
    root_second = sum(problem.extra["root"] for problem in train) / len(train)
    for share in (stats.more_ancestors, stats.mentioned_less, stats.answer_first, root_second):
        assert share == pytest.approx(0.5, abs=0.03)
    assert stats.distractor_depth == pytest.approx(stats.path_length, abs=0.1)


def test_distractor_is_drawn_evenly_among_all_sinks_the_root_does_not_reach(train: list[Problem]) -> None:
    """Its rank among them, scaled to 0..1, has mean 1/2 and standard deviation below 0.5: 0.03 is over three standard
    errors."""
    ranks = []
    for problem in train:
        question = question_of(problem)
        reached = question.graph.distances(question.root)
        free = [node for node in question.graph.sinks if node not in reached]
        if len(free) > 1:
            ranks.append(free.index(question.distractor) / (len(free) - 1))
    assert len(ranks) > 1500
    assert sum(ranks) / len(ranks) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("ranges", [{}, SMALL], ids=["default", "small"])
def test_no_graph_is_in_two_splits(ranges: dict[str, Any]) -> None:
    """Fingerprints do not depend on the numbering; among small graphs, thousands of draws would otherwise coincide."""
    one = source(size={"train": 500, "valid": 60, "test": 60}, **ranges)
    splits = {"train": one.train(0) + one.train(1), "valid": one.valid(), "test": one.test()}
    prints = {name: {question_of(p).graph.fingerprint for p in split} for name, split in splits.items()}
    assert not prints["train"] & prints["valid"]
    assert not prints["train"] & prints["test"]
    assert not prints["valid"] & prints["test"]
    assert all(split_of_graph(question_of(p).graph) == name for name, split in splits.items() for p in split)


@pytest.mark.parametrize("wording", ["sentences", "arrows"])
def test_no_problem_of_a_single_graph_is_in_two_splits_whatever_its_order(wording: str) -> None:
    """Two chains of three nodes with six symbols make 720 problems; 4,000 draws contain nearly all those of a split."""
    size = {"train": 4000, "valid": 300, "test": 300}
    ranges = {"num_nodes": (6, 6), "num_layers": (3, 3), "num_edges": (4, 4)}
    with pytest.raises(DataError, match=r"data\.split_by=problems"):
        source(size=size, wording=wording, **ranges)
    one = source(size=size, wording=wording, split_by="problems", **ranges)
    splits = {"train": one.train(0), "valid": one.valid(), "test": one.test()}

    def key(problem: Problem) -> tuple[frozenset[str], frozenset[str]]:
        *context, asked = re.split(r"(?<=\.) | (?=From)", problem.question)
        edges = context if wording == "sentences" else context[0].split()
        assert len(edges) == 4
        return frozenset(edges), frozenset(re.findall(r"\w+", asked))

    keys = {name: {key(problem) for problem in split} for name, split in splits.items()}
    assert not keys["train"] & keys["valid"]
    assert not keys["train"] & keys["test"]
    assert not keys["valid"] & keys["test"]
    if wording == "arrows":
        assert len(keys["train"]) == pytest.approx(0.8 * 720, abs=45), "four standard errors"
    for problem in splits["train"][:200]:
        check_chains(problem)


def check_chains(problem: Problem) -> None:
    parents, children = zip(*problem.extra["edges"], strict=True)
    assert len(set(parents)) == len(set(children)) == len(parents) == 4


def test_problems_depend_on_seed_split_epoch_and_index_only() -> None:
    size = {"train": 20, "valid": 10, "test": 10}
    online, offline = source(size=size), source(size=size, online=False)
    assert online.train(1) != online.train(0)
    assert online.train(1) == source(size=size).train(1), "no memory of what was drawn before"
    assert offline.train(7) == offline.train(0) == online.train(0)
    assert online.valid() == offline.valid() == source(size=size).valid()
    assert source(size={**size, "valid": 5, "train": 3}).valid() == online.valid()[:5]
    assert source(size=size, seed=1).valid() != online.valid()
    assert online.valid() != online.test()
    assert [len(online.train(0)), len(online.valid()), len(online.test())] == [20, 10, 10]


def test_arrows_describe_the_same_graphs_with_one_word_per_edge() -> None:
    size = {"train": 200, "valid": 50, "test": 50}
    sentences, arrows = (source(size=size, wording=wording) for wording in ("sentences", "arrows"))
    for said, drawn in zip(sentences.train(3) + sentences.test(), arrows.train(3) + arrows.test(), strict=True):
        graph_of = {key: value for key, value in said.extra.items() if key != "idx_to_symbol"}
        assert graph_of == {key: value for key, value in drawn.extra.items() if key != "idx_to_symbol"}
        symbols, root = drawn.extra["idx_to_symbol"], drawn.extra["root"]
        *context, start, first, second = re.fullmatch(r"(.*) From (\w+) to (\w+) or (\w+)\?", drawn.question).groups()
        edges = [tuple(symbols.index(symbol) for symbol in word.split(">")) for word in context[0].split()]
        assert sorted(edges) == sorted(map(tuple, drawn.extra["edges"]))
        path = [tuple(symbols.index(symbol) for symbol in step.split(">")) for step in drawn.steps]
        assert set(path) <= set(edges)
        assert path[0][0] == symbols.index(start) == root
        assert all(above[1] == below[0] for above, below in pairwise(path))
        assert drawn.answer == symbols[path[-1][1]] == symbols[drawn.extra["target"]]
        assert {first, second} == {drawn.answer, symbols[drawn.extra["neg_target"]]}
        assert len(path) == len(said.steps), "both steps are a shortest path"


def test_order_and_symbols_of_arrows_tell_nothing() -> None:
    """Chance 1/2 and 1/24 for root and first edge; at 2,000 problems four standard errors are 0.045 and 0.018."""
    problems = source(wording="arrows", num_nodes=(24, 24)).train(0) + source(
        wording="arrows", num_nodes=(24, 24)
    ).train(1)
    answer_first = [problem.question.split(" to ")[1].startswith(f"{problem.answer} ") for problem in problems]
    assert sum(answer_first) / len(problems) == pytest.approx(1 / 2, abs=0.045)
    lowest = [problem.extra["idx_to_symbol"][0] == "0" for problem in problems]
    assert sum(lowest) / len(problems) == pytest.approx(1 / 24, abs=0.018)


@pytest.mark.parametrize("ranges", [{}, SMALL, LARGE, {**SMALL, "wording": "arrows"}], ids=str)
def test_vocabulary_holds_every_word_of_every_problem(ranges: dict[str, Any]) -> None:
    """Words are split at spaces, or at punctuation too. Graphs above 40 nodes need more than 38 concepts."""
    one = source(size={"train": 150, "valid": 10, "test": 10}, **ranges)
    train = one.train(0)
    drawn = [text for p in train + one.valid() + one.test() for text in (p.question, *p.steps, p.answer)]
    for pattern in (r"\S+", r"\w+|[^\w\s]"):
        known = {word for text in one.vocabulary() for word in re.findall(pattern, text)}
        assert {word for text in drawn for word in re.findall(pattern, text)} <= known
    for problem in train[:50]:
        symbols = problem.extra["idx_to_symbol"]
        assert len(set(symbols)) == len(symbols)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_layers": (1, 4)},
            r"data\.num_layers: found \[1, 4\], expected at least 2 .*set data\.num_layers=\[2,4\]",
        ),
        (
            {"num_nodes": (10, 24)},
            r"data\.num_nodes: found \[10, 24\], expected at least 12.*set data\.num_nodes=\[12,24\]",
        ),
        ({"num_nodes": (16, 2000)}, r"data\.num_nodes: .*expected at most 940"),
        (
            {"num_nodes": (16, 80), "num_edges": (78, 78), "wording": "arrows"},
            r"data\.num_nodes: .*expected at most 64 with data\.wording=arrows.*set data\.num_nodes=\[16,64\]",
        ),
        (
            {"num_edges": (20, 40)},
            r"data\.num_edges: found \[20, 40\], expected at least 22.*set data\.num_edges=\[22,40\]",
        ),
        (
            {"num_edges": (24, 200)},
            r"data\.num_edges: found \[24, 200\], expected at most \d+.*set data\.num_edges=\[24,\d+\], or raise",
        ),
        ({"num_nodes": (24, 16)}, r"data\.num_nodes: found \[24, 16\], expected \[smallest, largest\].*=\[16,24\]"),
        ({"size": {"train": 5, "valid": 1}}, r"data\.size: found .*expected train, valid and test"),
        ({"num_nodes": (4, 4), "num_layers": (2, 2), "num_edges": (2, 2)}, "too few different graphs"),
        (
            {"num_nodes": (12, 80), "num_edges": (78, 80)},
            r"layers permit \(.*\); raise the first number of data\.num_nodes",
        ),
    ],
)
def test_ranges_that_cannot_be_met_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(**changes)


@pytest.mark.parametrize("corner", [(12, 6, 12), (16, 4, 14), (30, 2, 28), (17, 6, 40), (12, 6, 20)], ids=str)
def test_narrow_ranges_that_can_be_met_are_drawn(corner: tuple[int, int, int]) -> None:
    """Ranges of a single number at the limits: the fewest nodes, the fewest edges, the most edges that fit."""
    nodes, layers, edges = corner
    size = {"train": 100, "valid": 1, "test": 1}
    one = source(num_nodes=(nodes, nodes), num_layers=(layers, layers), num_edges=(edges, edges), size=size)
    for problem in one.train(0):
        check_problem(problem)
        assert (len(problem.extra["idx_to_symbol"]), len(problem.extra["edges"])) == (nodes, edges)
