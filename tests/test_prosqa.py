"""ProsQA generator: the statistics of the published data, and properties of every single problem."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from checking_graphs import check_problem

from coconut_ds.data.graph_stats import GraphStats, graph_stats, stats_table
from coconut_ds.data.graphs import CONCEPTS, NAMES, Graph
from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.data.prosqa import draw_question, generate_problem, generate_split
from coconut_ds.errors import DataError

SCRIPT = Path(__file__).parents[1] / "preprocessing" / "prosqa.py"
SIZE = 5000


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [problem for problem, _ in generate_split(0, "train", SIZE)]


@pytest.fixture(scope="module")
def stats(problems: list[Problem]) -> GraphStats:
    return graph_stats(problems)


@pytest.mark.parametrize(
    ("name", "expected", "within"),
    [
        ("nodes", 22.8, 0.2),
        ("edges", 36.0, 0.6),
        ("path_length", 3.77, 0.07),
        ("num_shortest_paths", 1.59, 0.10),
        ("distractor_depth", 2.11, 0.08),
        ("sources", 2.55, 0.10),
        ("answer_first", 0.50, 0.02),
        ("more_ancestors", 0.71, 0.04),
        ("mentioned_less", 0.65, 0.04),
    ],
)
def test_means_are_those_of_the_published_problems(
    stats: GraphStats, name: str, expected: float, within: float
) -> None:
    """There are 800 published problems, so their means are uncertain too: the path length by 0.03, the shares
    more_ancestors and mentioned_less by 0.016."""
    assert getattr(stats, name) == pytest.approx(expected, abs=within)


def test_histograms_are_those_of_the_published_problems(stats: GraphStats) -> None:
    assert set(stats.path_lengths) == {3, 4, 5, 6}
    for length, share in {3: 0.41, 4: 0.44, 5: 0.13, 6: 0.02}.items():
        assert stats.path_lengths[length] == pytest.approx(share, abs=0.04), length
    for degree, share in {0: 0.03, 1: 0.48, 2: 0.30, 3: 0.13, 4: 0.04}.items():
        assert stats.in_degrees[degree] == pytest.approx(share, abs=0.015), degree


def test_every_problem_is_well_formed(problems: list[Problem]) -> None:
    for problem in problems:
        check_problem(problem)
        assert problem.extra["root"] in (0, 1)
        assert 3 <= len(problem.steps) <= 6
        assert set(problem.extra["idx_to_symbol"]) <= {*NAMES, *CONCEPTS}


def test_edges_as_listed_do_not_order_the_sentences(problems: list[Problem]) -> None:
    """Edges are shuffled: the last edge of the graph comes last in about one problem of 36; likewise the first."""
    last = 0
    for problem in problems:
        symbols, (parent, child) = problem.extra["idx_to_symbol"], problem.extra["edges"][-1]
        last += f"{symbols[parent]} is a {symbols[child]}. Is " in problem.question
    assert 0.5 / 36 < last / SIZE < 2 / 36


def test_no_graph_repeats_and_equal_seeds_give_equal_problems() -> None:
    test = list(generate_split(3, "test", 50))
    taken = {fingerprint for _, fingerprint in test}
    assert len(taken) == 50
    assert list(generate_split(3, "test", 60))[:50] == test, "a longer split begins like a shorter one"
    assert [problem for problem, _ in generate_split(4, "test", 50)] != [problem for problem, _ in test]
    again = list(generate_split(3, "test", 50, exclude=taken))
    assert not taken & {fingerprint for _, fingerprint in again}
    assert generate_problem(random.Random(1)) == generate_problem(random.Random(1))


def test_a_graph_drawn_again_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real graphs hardly ever coincide, so this draws from five: a split of five must contain each of them once."""
    pool = [draw_question(random.Random(seed)) for seed in range(5)]
    monkeypatch.setattr("coconut_ds.data.prosqa.draw_question", lambda rng: rng.choice(pool))
    drawn = [fingerprint for _, fingerprint in generate_split(0, "train", 5)]
    assert sorted(drawn) == sorted(question.graph.fingerprint for question in pool)


def test_fingerprint_ignores_numbering_and_sees_an_edge() -> None:
    """Nodes renumbered in another topological order give the same digest; moving one edge gives another digest."""
    graph = Graph(6, ((0, 2), (1, 3), (2, 4), (3, 5), (0, 3)))
    order = [1, 0, 3, 2, 5, 4]
    renumbered = Graph(6, tuple((order[parent], order[child]) for parent, child in graph.edges))
    assert renumbered.edges != graph.edges
    assert renumbered.fingerprint == graph.fingerprint
    assert Graph(6, ((0, 2), (1, 3), (2, 4), (3, 5), (0, 4))).fingerprint != graph.fingerprint


def test_shortest_paths_are_drawn_evenly() -> None:
    """Each of the three paths from 0 to 5 is drawn a third of the time, not 1/4, 1/4, 1/2 as with uniform steps.

    Of 3,000 draws 1,000 +- 26 are expected; 130 is five standard deviations.
    """
    graph = Graph(6, ((0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)))
    rng = random.Random(0)
    counts = Counter(tuple(graph.draw_shortest_path(rng, 0, 5)) for _ in range(3000))
    assert len(counts) == graph.shortest_path_counts(0)[5] == 3
    assert all(abs(count - 1000) < 130 for count in counts.values()), counts


def test_statistics_of_one_problem_counted_by_hand() -> None:
    """Target 5: parents 2, 3; ancestors 0, 2, 3. Distractor 4: parent 1 only."""
    extra = {"idx_to_symbol": list("RSabcd"), "edges": [[0, 2], [0, 3], [1, 4], [2, 5], [3, 5]]}
    one = Problem("R is a ... Is R a d or c?", (), "R is a d.", {**extra, "root": 0, "target": 5, "neg_target": 4})
    stats = graph_stats([one])
    assert (stats.nodes, stats.edges, stats.sources) == (6, 5, 2)
    assert (stats.path_lengths, stats.num_shortest_paths) == ({2: 1.0}, 2)
    assert stats.in_degrees == {1: 0.75, 2: 0.25}
    assert (stats.distractor_depth, stats.answer_first) == (1, 1)
    assert (stats.more_ancestors, stats.mentioned_less) == (1, 0)
    assert "shortcut: more ancestors" in stats_table({"a": stats, "b": stats})


def test_statistics_refuse_problems_without_a_graph() -> None:
    with pytest.raises(DataError, match=r"x\.json: item 0: key 'edges' is missing"):
        graph_stats([Problem("q", (), "a", {"idx_to_symbol": []})], "x.json")
    extra = {"idx_to_symbol": list("RSab"), "edges": [[0, 9]], "root": 0, "target": 2, "neg_target": 3}
    with pytest.raises(DataError, match=r"found \[0, 9\] .* indices 0 to 3"):
        graph_stats([Problem("q", (), "a", extra)])
    with pytest.raises(DataError, match="root 0 and target 2, expected root 0 or 1 and a path"):
        graph_stats([Problem("q", (), "a", {**extra, "edges": [[0, 3]]})])


def test_script_runs_as_a_file_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(SCRIPT)]  # -I: neither the caller's folder nor PYTHONPATH is on the path
    run = subprocess.run(
        [*command, "--out", "new/data", "--sizes", "8", "2", "3"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    out = tmp_path / "new" / "data"
    assert sorted(path.name for path in out.iterdir()) == [
        f"prosqa_{s}.json" for s in ("manifest", "test", "train", "valid")
    ]
    assert [len(load_problems(out / f"prosqa_{split}.json")) for split in ("train", "valid", "test")] == [8, 2, 3]
    keys = {"question", "steps", "answer", "idx_to_symbol", "edges", "root", "target", "neg_target"}
    assert all(set(item) == keys for item in json.loads((out / "prosqa_valid.json").read_text()))
    shown = subprocess.run(
        [*command, "--stats", out / "prosqa_train.json", out / "prosqa_test.json"], capture_output=True, text=True
    )
    assert shown.stdout.splitlines()[1].split() == ["problems", "8", "3"]
    missing = subprocess.run([*command, "--stats", tmp_path / "none.json"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"{tmp_path / 'none.json'}: no such file")
