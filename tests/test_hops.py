"""The tokens of each hop, against all walks through the graph; and of steps without a graph."""

from collections import Counter
from fractions import Fraction

import pytest
from making_graphs import FORMATS, problems_of, walks
from making_tokenizers import tokenizers

from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.formats import TEXT


@pytest.mark.parametrize("form", FORMATS)
def test_frontiers_and_paths_are_those_of_all_walks(form):
    problems = problems_of(form)
    texts = [text for p in problems for text in (p.question, *p.steps, p.answer, "[A]")]
    tokenizer = build_word_tokenizer(texts)
    reader = HopReader(tokenizer, FORMATS[form])
    for problem in problems:
        asked, symbols = question_of(problem), problem.extra["idx_to_symbol"]
        paths = walks(asked.graph, asked.root)
        hops = {end: min(len(path) - 1 for path in paths if path[-1] == end) for end in {path[-1] for path in paths}}
        found = reader.hops(problem)
        assert len(found) == len(problem.steps)
        for number, (hop, step) in enumerate(zip(found, problem.steps, strict=True), start=1):
            nodes = [node for node, distance in hops.items() if distance == number]
            expected: Counter[str] = Counter()
            for node in nodes:
                ends = {path[-2] for path in paths if path[-1] == node and len(path) - 1 == number}
                for parent in ends:
                    name = f"{symbols[parent]}>{symbols[node]}" if form == "arrows" else symbols[node]
                    expected[name] += Fraction(1, len(nodes) * len(ends))
            names = {tokenizer.convert_ids_to_tokens(token): share for token, share in hop.frontier.items()}
            assert names == pytest.approx({name: float(share) for name, share in expected.items()})
            assert sum(names.values()) == pytest.approx(1)
            own = step.removesuffix(".").split()[-1]
            assert [tokenizer.convert_ids_to_tokens(token) for token in hop.path] == [own]
            assert set(hop.path) <= set(hop.frontier)


@pytest.mark.parametrize("kind", ["llama", "lone_spaces"])
@pytest.mark.parametrize("form", ["text", "arrows"])
def test_a_node_is_named_by_the_first_token_that_differs_from_steps_to_other_nodes(kind, form):
    """Whatever the tokenizer does with spaces and with the beginning of a step."""
    tokenizer = tokenizers()[kind]
    reader = HopReader(tokenizer, TEXT)
    for problem in problems_of(form, 3):
        for hop, step in zip(reader.hops(problem), problem.steps, strict=True):
            name = step.removesuffix(".").split()[-1].split(">")[-1]
            (token,) = hop.path
            text = tokenizer.decode([token])
            assert name.startswith(text.strip())
            assert text.strip()
            assert token in hop.frontier
            assert sum(hop.frontier.values()) == pytest.approx(1)


def words_of(problem: Problem, **extra) -> list[tuple[list[str], list[str]]]:
    texts = [problem.question, *problem.steps, problem.answer]
    tokenizer = build_word_tokenizer(texts)
    hops = HopReader(tokenizer, TEXT).hops(Problem(problem.question, problem.steps, problem.answer, extra))
    return [tuple(tokenizer.convert_ids_to_tokens(list(part)) for part in (hop.path, hop.frontier)) for hop in hops]


def test_without_a_graph_a_hop_is_the_first_token_in_which_the_steps_of_the_problem_differ():
    """A graph that cannot be used counts as none."""
    steps = ("so 3 + 4 = 7", "so 7 + 1 = 8", "so 7 + 2 = 9")
    assert words_of(Problem("?", steps, "9")) == [(["3"], ["3"]), (["7"], ["7"]), (["7"], ["7"])]
    assert words_of(Problem("?", steps[:1], "7")) == [(["so"], ["so"])]
    assert words_of(Problem("?", ("a b", "a b"), "7")) == [(["a"], ["a"])] * 2
    assert words_of(Problem("?", (), "7")) == []
    assert words_of(Problem("?", steps[:2], "9"), idx_to_symbol=["a", "b"], edges=[[0, 9]], root=0) == [
        (["3"], ["3"]),
        (["7"], ["7"]),
    ]


def test_a_longer_path_than_the_shortest_keeps_its_own_nodes_and_steps_in_other_words_their_first_token():
    graph = {"idx_to_symbol": ["a", "x", "b", "c", "d"], "edges": [[0, 2], [2, 3], [0, 3], [3, 4]]}
    ends = {"root": 0, "target": 4, "neg_target": 1}
    detour = Problem("a is a b. Every b is a c.", ("a is a b.", "Every b is a c.", "then d"), "a is a d.")
    found = words_of(detour, **graph, **ends)
    assert [path for path, _ in found] == [["b"], ["c"], ["d"]]
    # Both b and c are one edge from the root, d two, and nothing is three.
    assert [sorted(frontier) for _, frontier in found] == [["b", "c"], ["d"], []]
