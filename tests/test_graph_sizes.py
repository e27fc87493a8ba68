"""Sizes, symbols and wordings of generated graphs: every problem is true of its text, and one vocabulary serves all."""

import re
from itertools import chain, pairwise

import pytest
from checking_graphs import all_paths, check_problem

from coconut_ds.data.graph_stats import graph_stats, question_of, shortcut_points
from coconut_ds.data.graphs import split_of_graph, split_of_problem
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source, open_source
from coconut_ds.data.tokens import build_word_tokenizer, tokenize
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.settings.compose import compose_config

PROSQA, LAYERED = ("data=prosqa_symbolic",), ("data=synthetic", "format=symbolic")
SMALL = ("num_nodes=[8,10]", "num_edges=[8,9]", "num_hops=[2,3]", "split_by=problems")


def source(*overrides: str) -> Source:
    config = compose_config(["size={train: 15, valid: 3, test: 3}", "online=true", *overrides])
    return open_source(config.data, config.run.seed)


def check_symbols(problem: Problem, pattern: str) -> None:
    """Reads a problem in symbols from its text alone."""
    read = re.fullmatch(r"(.*) \[Q\] (\d+) (\d+) \[R\] (\d+)", problem.question)
    assert read is not None
    edges = [(int(a), int(b)) for a, b in re.findall(pattern, read[1])]
    first, second, root = (int(word) for word in read.groups()[1:])
    path = [root, *map(int, problem.steps)]
    paths = all_paths(edges, root)
    assert set(pairwise(path)) <= set(edges)
    assert len(path) == min(len(one) for one in paths if one[-1] == path[-1])
    other = second if path[-1] == first else first
    assert {path[-1], other} == {first, second} == {int(problem.answer), other}
    assert not any(one[-1] == other for one in paths)
    names, written = problem.extra["idx_to_symbol"], {node for edge in edges for node in edge}
    assert sorted(map(int, names)) == sorted(written)
    assert len(edges) == len(problem.extra["edges"])


@pytest.mark.parametrize("wording", ["triples", "arrows", "sentences"])
@pytest.mark.parametrize("kind", [PROSQA, (*LAYERED, "num_layers=[3,4]")], ids=["prosqa", "layered"])
def test_graphs_of_any_size_have_the_sizes_that_were_asked_for(kind: tuple[str, ...], wording: str) -> None:
    text = ["format=text"] if wording == "sentences" else []
    one = source(*kind, *SMALL, *text, f"wording={wording}", "num_symbols=40")
    for split, problems in {"train": one.train(1), "valid": one.valid(), "test": one.test()}.items():
        for problem in problems:
            assert 8 <= len(problem.extra["idx_to_symbol"]) <= 10
            assert 8 <= len(problem.extra["edges"]) <= 9
            assert 2 <= len(problem.steps) <= 3
            assert split_of_problem(problem) == split
            if text:
                check_problem(problem)
            else:
                check_symbols(problem, r"(\d+)>(\d+)" if wording == "arrows" else r"(\d+) (\d+)(?: \||$)")
    assert len({problem.question for problem in one.train(0) + one.train(1)}) == 30


def test_large_graphs_and_long_paths_are_drawn_and_split_by_their_graphs() -> None:
    one = source(*PROSQA, "num_nodes=[30,34]", "num_hops=[5,6]", "size={train: 8, valid: 2, test: 2}")
    for split, problems in {"train": one.train(0), "valid": one.valid(), "test": one.test()}.items():
        for problem in problems:
            assert len(problem.extra["idx_to_symbol"]) in range(30, 35)
            assert len(problem.steps) in (5, 6)
            assert split_of_graph(question_of(problem).graph) == split


def test_balanced_problems_leave_nothing_to_tell_the_options_apart_but_the_root() -> None:
    """Both options have as many ancestors and mentions, are as deep below their roots on average, and win as often."""
    problems = source("data=prosqa_balanced", "size.train=60").train(0)
    stats = graph_stats(problems)
    assert (stats.more_ancestors, stats.mentioned_less) == (0.5, 0.5)
    assert set(stats.path_lengths) == {3, 4}
    assert stats.distractor_depth == pytest.approx(stats.path_length, abs=0.3)
    assert 15 < sum(problem.extra["root"] for problem in problems) < 45
    assert 0.3 < stats.answer_first < 0.7
    for problem in problems:
        assert set(shortcut_points(question_of(problem)).values()) == {0.5}
        check_symbols(problem, r"(\d+) (\d+)(?: \||$)")
    unbalanced = graph_stats(source("data=prosqa_symbolic", "size.train=100").train(0))
    assert min(unbalanced.more_ancestors, unbalanced.mentioned_less) > 0.55
    for problem in source("data=prosqa_balanced", "wording=sentences", "format=text").valid():
        check_problem(problem)


@pytest.mark.parametrize("wording", ["triples", "arrows", "sentences"])
def test_a_tokenizer_made_once_serves_graphs_of_all_sizes(wording: str) -> None:
    """Its ids do not depend on the sizes, and no word of a larger graph is unknown."""
    form = "text" if wording == "sentences" else "symbolic"
    small = ("num_nodes=[8,8]", "num_layers=[3,3]", "num_edges=[8,8]")
    large = ("num_nodes=[40,40]", "num_edges=[40,50]")
    shared = ("data=synthetic", f"wording={wording}", f"format={form}", "num_symbols=44", "split_by=problems")
    sources = [source(*shared, *small), source(*shared, *large)]
    sources += [source("data=prosqa_symbolic", *shared[1:4], *sizes) for sizes in (("num_nodes=[12,40]",), ())]
    assert len({tuple(one.vocabulary()) for one in sources}) == 1
    tokenizer = build_word_tokenizer(sources[0].vocabulary())
    config = compose_config([*shared, *large])
    for one in sources:
        for problem in tokenize(tokenizer, one.train(0)[:5], config.data.text_format):
            assert tokenizer.unk_token_id not in [
                *problem.question,
                *problem.answer,
                *chain(*problem.steps),
            ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*PROSQA, "wording=sentences"], r"format=symbolic needs symbols.*set data\.format=text"),
        ([*PROSQA, "num_layers=[3,4]"], r"num_layers=\[3, 4\]: .*set data\.num_hops="),
        ([*PROSQA, "num_symbols=9"], r"data\.num_symbols: found 9, expected at least 28.*set data\.num_symbols=28"),
        ([*PROSQA, "num_symbols=65", "wording=arrows"], r"expected at most 64 with data\.wording=arrows"),
        ([*PROSQA, "num_nodes=[5,5]", "num_hops=[6,6]"], r"num_hops=\[6, 6\] give too few .* widen a range"),
        (["data=synthetic", "balanced=true"], r"balanced=true: only ProsQA's graphs.*set data=prosqa_balanced"),
        ([*LAYERED, "num_symbols=23"], r"data\.num_symbols: found 23, expected at least 24"),
        (["data=synthetic", "num_symbols=20"], r"at least 22, one name for each node but the two persons"),
        ([*LAYERED, "num_hops=[9,9]"], r"data\.num_hops=\[9, 9\] give too few"),
    ],
)
def test_sizes_that_cannot_be_met_are_refused_at_once(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("symbolic", "layered"):
        monkeypatch.setattr(f"coconut_ds.data.{module}.MAX_TRIES", 100)
    with pytest.raises((ConfigError, DataError), match=message):
        source(*overrides)
