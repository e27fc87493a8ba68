"""The released checkpoint that searches graphs answers and thinks as its card says."""

import pytest
from released_models import RELEASED, table

from coconut_ds import load_reasoner
from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.problem import load_problems
from coconut_ds.reasoner import Reasoner

FOLDER = RELEASED / "graph_search"
PROBLEMS = load_problems(FOLDER / "problems" / "test.json")


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return load_reasoner(FOLDER)


def frontiers(index: int) -> list[set[str]]:
    """The names of the nodes at each distance from the root, from 1 on."""
    problem = PROBLEMS[index]
    question, names = question_of(problem), problem.extra["idx_to_symbol"]
    distances = question.graph.distances(question.root)
    hops = range(1, max(distances.values()) + 1)
    return [{names[node] for node, hop in distances.items() if hop == wanted} for wanted in hops]


def test_it_is_as_right_as_its_card_says(reasoner: Reasoner) -> None:
    assert len(PROBLEMS) == 100
    for thoughts, _, right in table(FOLDER.name, "Accuracy"):
        answers = reasoner.generate(
            [one.question for one in PROBLEMS], n_thoughts=int(thoughts.split()[0]), batch_size=100
        )
        found = sum(answer.answer == one.answer for answer, one in zip(answers, PROBLEMS, strict=True))
        # Kernels of other processors may round differently.
        assert found == pytest.approx(int(right), abs=3)


def test_its_thoughts_are_those_that_its_card_shows(reasoner: Reasoner) -> None:
    (answer,) = reasoner.generate([PROBLEMS[0].question], keep_thoughts=True)
    decoded = reasoner.decode_thoughts(answer)
    for (number, tokens, nodes), thought, frontier in zip(
        table(FOLDER.name, "Thoughts"), decoded, frontiers(0), strict=False
    ):
        assert tokens.split() == [token.strip() for token in thought.tokens[:3]], number
        assert set(nodes.split()) == frontier, number


def test_a_thought_holds_all_nodes_at_its_distance(reasoner: Reasoner) -> None:
    """Of the first two thoughts of 30 problems, the likeliest tokens are the frontier, as many as it has nodes."""
    answers = reasoner.generate([one.question for one in PROBLEMS[:30]], keep_thoughts=True, batch_size=30)
    held = []
    for index, answer in enumerate(answers):
        for thought, frontier in zip(reasoner.decode_thoughts(answer, top_k=12)[:2], frontiers(index), strict=False):
            likeliest = {token.strip() for token in thought.tokens[: len(frontier)]}
            held.append(len(likeliest & frontier) / len(frontier))
    assert sum(held) / len(held) > 0.9


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 2_000_000
