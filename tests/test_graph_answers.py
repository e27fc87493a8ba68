"""Categories of generated texts: each on a graph written out by hand, and properties of generated problems."""

import random
from itertools import pairwise

import pytest

from coconut_ds.data.graph_answers import CATEGORY_NAMES, Category, categorise, is_graph_problem, shortcuts
from coconut_ds.data.graph_stats import graph_stats
from coconut_ds.data.graphs import NAMES
from coconut_ds.data.problem import Problem
from coconut_ds.data.prosqa import generate_problem
from coconut_ds.data.symbolic import SymbolicProsqa
from coconut_ds.errors import DataError
from coconut_ds.formats import SYMBOLIC, is_correct
from coconut_ds.settings import SplitSizes

SYMBOLS = ["Tom", "Sam", "terpus", "yumpus", "brimpus", "rompus", "jelpus", "grimpus", "lempus"]
TOM, SAM, TERPUS, YUMPUS, BRIMPUS, ROMPUS, JELPUS, GRIMPUS, LEMPUS = range(9)
EDGES = [
    [TOM, TERPUS],
    [TOM, YUMPUS],
    [TERPUS, YUMPUS],
    [TERPUS, BRIMPUS],
    [TERPUS, ROMPUS],
    [YUMPUS, BRIMPUS],
    [BRIMPUS, LEMPUS],
    [SAM, JELPUS],
    [JELPUS, GRIMPUS],
    [JELPUS, LEMPUS],
]
"""Two shortest paths lead from Tom to lempus, over terpus or yumpus and then brimpus; one is longer, over both. Tom
does not reach jelpus, and rompus is a dead end."""
GRAPH = {"idx_to_symbol": SYMBOLS, "edges": EDGES, "root": TOM, "target": LEMPUS, "neg_target": GRIMPUS}
PROBLEM = Problem("... Is Tom a lempus or grimpus?", (), "Tom is a lempus.", GRAPH)
RIGHT, WRONG = "### Tom is a lempus.", "### Tom is a grimpus."
NEEDS_RIGHT_ANSWER = {Category.CORRECT_PATH, Category.LONGER_PATH, Category.CORRECT_LABEL}


def chain(words: str) -> str:
    """Steps along ``words``: "Tom terpus brimpus" is "Tom is a terpus." and "Every terpus is a brimpus."."""
    nodes = words.split()
    subjects = [node if node in NAMES else f"Every {node}" for node in nodes]
    return "".join(f"{subject} is a {node}.\n" for subject, node in zip(subjects, nodes[1:], strict=False))


CASES = [
    # text, its category, and its category if no thoughts replace steps (where that differs)
    (chain("Tom terpus brimpus lempus") + RIGHT, "correct_path", None),
    (chain("Tom yumpus brimpus lempus") + RIGHT, "correct_path", None),
    (chain("Tom terpus brimpus lempus").replace("Every ", " ") + RIGHT, "correct_path", None),
    (chain("Tom terpus brimpus lempus").replace("\n", " ") + "#Tom is a lempus.", "correct_path", None),
    (chain("brimpus lempus") + RIGHT, "correct_path", "hallucination"),
    (chain("yumpus brimpus lempus") + RIGHT, "correct_path", "hallucination"),
    (chain("terpus brimpus") + RIGHT, "correct_path", "hallucination"),
    (chain("Tom terpus") + RIGHT, "correct_path", "wrong_target"),
    (chain("Tom terpus yumpus brimpus lempus") + RIGHT, "longer_path", None),
    (chain("terpus yumpus brimpus lempus") + RIGHT, "longer_path", "hallucination"),
    (chain("terpus yumpus") + RIGHT, "longer_path", "hallucination"),
    (chain("Tom terpus yumpus") + RIGHT, "longer_path", "wrong_target"),
    (chain("Tom brimpus lempus") + RIGHT, "hallucination", None),  # no single edge leads from Tom to brimpus
    (chain("Tom terpus lempus") + WRONG, "hallucination", None),
    (chain("lempus brimpus") + RIGHT, "hallucination", None),  # edges have a direction
    (chain("Tom terpus") + chain("brimpus lempus") + RIGHT, "hallucination", None),
    (chain("brimpus lempus") + chain("Tom terpus brimpus") + RIGHT, "hallucination", None),
    (chain("Tom terpus") * 2 + RIGHT, "hallucination", None),
    (chain("jelpus lempus") + RIGHT, "hallucination", None),  # an edge, but not one that Tom reaches
    (chain("Sam jelpus grimpus") + WRONG, "hallucination", None),
    (chain("Tom wumpus brimpus") + RIGHT, "hallucination", None),
    (chain("wumpus fumpus") + RIGHT, "hallucination", None),
    ("Tom is no terpus.\n" + RIGHT, "hallucination", None),
    ("So Tom is a terpus.\n" + RIGHT, "hallucination", None),
    (f"{RIGHT}\n{RIGHT}", "hallucination", None),
    (chain("Tom terpus") + "Every terp", "hallucination", None),  # cut off within a step
    (chain("Tom terpus rompus") + "### Tom is a rompus.", "wrong_target", None),
    (chain("Tom terpus rompus") + RIGHT, "wrong_target", None),
    (chain("terpus rompus") + RIGHT, "wrong_target", "hallucination"),
    (chain("Tom terpus brimpus lempus") + WRONG, "wrong_target", None),
    (chain("Tom terpus brimpus lempus") + "###", "wrong_target", None),
    (chain("Tom terpus brimpus lempus"), "wrong_target", None),  # cut off before the answer
    (chain("brimpus lempus") + WRONG, "wrong_target", "hallucination"),
    (RIGHT, "correct_label", None),
    (f" \n\n{RIGHT}\n", "correct_label", None),
    ("Tom is a lempus.", "correct_label", None),
    (WRONG, "incorrect_label", None),
    ("Tom is a grimpus.", "incorrect_label", None),
    ("### lempus", "incorrect_label", None),
    ("###", "incorrect_label", None),
    ("", "incorrect_label", None),
]


@pytest.mark.parametrize(("text", "category", "category_if_whole"), CASES, ids=[repr(text) for text, *_ in CASES])
def test_a_text_on_a_graph_written_by_hand(text: str, category: str, category_if_whole: str | None) -> None:
    assert categorise(PROBLEM, text) == category
    assert categorise(PROBLEM, text, whole=True) == (category_if_whole or category)
    assert category not in NEEDS_RIGHT_ANSWER or is_correct(text, PROBLEM.answer)


def test_every_category_has_a_case_and_a_name_in_the_order_of_the_table() -> None:
    assert {category for _, category, _ in CASES} == set(Category)
    assert list(CATEGORY_NAMES.values()) == [
        "correct path",
        "longer path",
        "hallucination",
        "wrong target",
        "correct label",
        "incorrect label",
    ]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [generate_problem(random.Random(seed)) for seed in range(200)]


def distractor_of(problem: Problem) -> str:
    symbols = problem.extra["idx_to_symbol"]
    return f"{symbols[problem.extra['root']]} is a {symbols[problem.extra['neg_target']]}."


def test_gold_steps_whole_or_in_part_are_correct_paths(problems: list[Problem]) -> None:
    for problem in problems:
        count, answer = len(problem.steps), f"### {problem.answer}"
        for first in range(count):
            for last in range(first + 1, count + 1):
                text = "\n".join([*problem.steps[first:last], answer])
                assert categorise(problem, text) == "correct_path", text
        assert categorise(problem, "\n".join([*problem.steps, answer]), whole=True) == "correct_path"
        assert categorise(problem, answer) == "correct_label"


def test_the_distractor_as_answer_is_a_wrong_target_or_label(problems: list[Problem]) -> None:
    for problem in problems:
        answer = f"### {distractor_of(problem)}"
        assert categorise(problem, "\n".join([*problem.steps, answer])) == "wrong_target"
        assert categorise(problem, answer) == categorise(problem, distractor_of(problem)) == "incorrect_label"


def test_an_edge_that_is_not_in_the_graph_is_a_hallucination_anywhere_in_the_text(problems: list[Problem]) -> None:
    for seed, problem in enumerate(problems):
        symbols = problem.extra["idx_to_symbol"]
        for position, step in enumerate(problem.steps):
            subject = step.removeprefix("Every ").split()[0]
            below = {symbols[child] for parent, child in problem.extra["edges"] if symbols[parent] == subject}
            invented = random.Random(seed).choice([symbol for symbol in symbols if symbol not in below])
            steps = [*problem.steps[:position], f"Every {subject} is a {invented}.", *problem.steps[position + 1 :]]
            assert categorise(problem, "\n".join([*steps, f"### {problem.answer}"])) == "hallucination"


def test_means_of_the_shortcuts_are_those_of_the_statistics(problems: list[Problem]) -> None:
    points, stats = [shortcuts(problem) for problem in problems], graph_stats(problems)
    for name in ("more_ancestors", "mentioned_less"):
        values = [one[name] for one in points]
        assert set(values) == {0.0, 0.5, 1.0}
        assert sum(values) / len(values) == pytest.approx(getattr(stats, name))
    assert shortcuts(PROBLEM) == {"more_ancestors": 1.0, "mentioned_less": 0.0}


def test_arrows_are_read_as_sentences_are() -> None:
    symbols = ["7", "8", "3", "5", "6", "10", "1", "4", "2"]
    problem = Problem("... From 7 to 2 or 4?", (), "2", {**GRAPH, "idx_to_symbol": symbols})
    node = dict(zip(SYMBOLS, symbols, strict=True))
    for words, right, category in (
        ("Tom terpus brimpus lempus", True, "correct_path"),
        ("Tom terpus yumpus brimpus lempus", True, "longer_path"),
        ("Tom terpus brimpus lempus", False, "wrong_target"),
        ("Tom brimpus lempus", True, "hallucination"),
        ("Sam jelpus grimpus", False, "hallucination"),
    ):
        nodes = [node[word] for word in words.split()]
        steps = "".join(f"{parent}>{child}\n" for parent, child in pairwise(nodes))
        assert categorise(problem, f"{steps}### {'2' if right else '4'}") == category
    assert categorise(problem, "7>3>6\n### 2") == "hallucination"
    assert categorise(problem, "2") == categorise(problem, "### 2") == "correct_label"
    assert categorise(problem, "4") == categorise(problem, "### 4") == "incorrect_label"
    assert categorise(problem, "7>3") == "wrong_target"


def test_of_one_token_formats_only_the_answer_counts() -> None:
    for problem in SymbolicProsqa(0, SplitSizes(train=1, valid=30, test=1), (3, 4), False).valid():
        assert is_graph_problem(problem)
        distractor = problem.extra["idx_to_symbol"][problem.extra["neg_target"]]
        for before in ("", f"{' '.join(problem.steps)} [A] "):
            assert categorise(problem, before + problem.answer, SYMBOLIC) == "correct_label"
            assert categorise(problem, before + distractor, SYMBOLIC) == "incorrect_label"
        assert categorise(problem, "", SYMBOLIC) == "incorrect_label"


def test_a_problem_without_graph_is_recognised_and_refused() -> None:
    assert is_graph_problem(PROBLEM)
    bare = Problem("q", (), "a", {key: value for key, value in GRAPH.items() if key != "edges"})
    assert not is_graph_problem(bare)
    with pytest.raises(DataError, match=r"x\.json: item 3: key 'edges' is missing"):
        categorise(bare, RIGHT, where="x.json: item 3")
    with pytest.raises(DataError, match="problem: key 'edges' is missing"):
        shortcuts(bare)
