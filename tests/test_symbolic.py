"""Symbolic ProsQA: each problem is true of its graph and is a pure function of seed, split and index."""

import re
from itertools import pairwise

import pytest

from coconut_ds.data.graphs import Graph, split_of_graph
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import open_source
from coconut_ds.data.symbolic import SymbolicProsqa
from coconut_ds.data.tokens import build_word_tokenizer, tokenize
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.settings import SplitSizes
from coconut_ds.settings.compose import compose_config

SIZE = SplitSizes(train=150, valid=30, test=30)


def source(seed: int = 0, online: bool = False) -> SymbolicProsqa:
    return SymbolicProsqa(seed, SIZE, (3, 4), online)


def graph_of(problem: Problem) -> Graph:
    return Graph(len(problem.extra["idx_to_symbol"]), tuple((a, b) for a, b in problem.extra["edges"]))


def edges_of(problem: Problem) -> list[tuple[str, str]]:
    context = problem.question.split(" [Q] ")[0]
    return [(a, b) for a, b in (triple.split() for triple in context.split(" | "))]


@pytest.mark.parametrize("problem", source().train(3)[:40], ids=lambda p: p.answer)
def test_a_problem_is_true_of_its_graph(problem: Problem) -> None:
    asked = re.fullmatch(r".* \[Q\] (\d+) (\d+) \[R\] (\d+)", problem.question)
    assert asked is not None
    *options, root = asked.groups()
    names, graph = problem.extra["idx_to_symbol"], graph_of(problem)
    assert sorted(edges_of(problem)) == sorted((names[a], names[b]) for a, b in graph.edges)
    assert sorted(options) == sorted([problem.answer, names[problem.extra["neg_target"]]])
    path = [root, *problem.steps]
    assert set(pairwise(path)) <= set(edges_of(problem))
    assert problem.steps[-1] == problem.answer
    reached = graph.distances(problem.extra["root"])
    assert reached[problem.extra["target"]] == len(problem.steps) in (3, 4)
    assert problem.extra["neg_target"] not in reached


def test_splits_share_no_graph_and_never_change() -> None:
    one, again = source(), source()
    assert (one.valid(), one.test(), one.train(2)) == (again.valid(), again.test(), again.train(2))
    for split, problems in {"train": one.train(0), "valid": one.valid(), "test": one.test()}.items():
        assert {split_of_graph(graph_of(problem)) for problem in problems} == {split}
    assert source(seed=1).valid() != one.valid()


def test_graphs_stay_unless_online_and_are_written_anew_in_each_epoch() -> None:
    kept, online = source(), source(online=True)
    first, second = kept.train(0), kept.train(1)
    assert [p.extra["edges"] for p in first] == [p.extra["edges"] for p in second]
    assert all(a.question != b.question for a, b in zip(first, second, strict=True))
    assert [p.extra["edges"] for p in online.train(0)] != [p.extra["edges"] for p in online.train(1)]


def test_names_and_order_of_options_tell_nothing() -> None:
    problems = source().train(0)
    first = sum(p.question.split(" [Q] ")[1].split()[0] == p.answer for p in problems)
    assert 50 < first < 100
    depth_of_name: dict[str, list[int]] = {}
    for problem in problems:
        for node, depth in graph_of(problem).distances(problem.extra["root"]).items():
            depth_of_name.setdefault(problem.extra["idx_to_symbol"][node], []).append(depth)
    means = [sum(depths) / len(depths) for depths in depth_of_name.values()]
    assert len(means) == 31
    assert max(means) - min(means) < 1.0


def test_the_vocabulary_is_about_forty_tokens_and_a_step_is_one() -> None:
    config = compose_config(["data=prosqa_symbolic", "model=gpt2_scratch_2layer", "training=prosqa_symbolic"])
    tokenizer = build_word_tokenizer(open_source(config.data, 0).vocabulary())
    assert len(tokenizer) == 39
    for problem in tokenize(tokenizer, source().train(0), config.data.text_format):
        assert {len(step) for step in problem.steps} == {1} == {len(problem.cue)}
        assert problem.question[0] == problem.answer[1] == tokenizer.eos_token_id
        assert len(problem.answer) == 2
        assert tokenizer.unk_token_id not in problem.question


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=coconut_reversed", ["method.kind=coconut_reversed", "set method=coconut"]),
        ("advance=accuracy", ["training.advance=accuracy", "set training.advance=epochs"]),
    ],
)
def test_settings_that_symbolic_problems_exclude_are_refused(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["data=prosqa_symbolic", override])
    assert [word for word in words if word not in str(caught.value)] == []


def test_hops_that_no_graph_has_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.num_hops: found \[2, 7\].*from 3 to 6.*set for example"):
        SymbolicProsqa(0, SIZE, (2, 7), False)
