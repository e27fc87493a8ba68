"""What cannot be scored or analysed is said before the first pass, with file and item; the rest is unaffected."""

from typing import Any

import pytest

from coconut_ds.data.checks import file_warnings, graph_warnings, is_scored, name_of, warnings_about
from coconut_ds.data.graph_answers import has_usable_graph, is_graph_problem
from coconut_ds.data.graph_stats import graph_stats, question_of
from coconut_ds.data.problem import Problem
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError
from coconut_ds.formats import SYMBOLIC, TEXT
from coconut_ds.settings import DataConfig

GRAPH: dict[str, Any] = {
    "idx_to_symbol": ["Tom", "Sam", "lempus", "gorpus"],
    "edges": [[0, 2], [1, 3]],
    "root": 0,
    "target": 2,
    "neg_target": 3,
}
FAULTS = {
    "edges: null": ({"edges": None}, "key 'edges': found null, expected a list of pairs"),
    "edges: a text": ({"edges": "0 2"}, "key 'edges': found \"0 2\", expected a list of pairs"),
    "an edge of three": ({"edges": [[0, 2, 1]]}, "found [0, 2, 1] among edges"),
    "an edge that is no list": ({"edges": [7]}, "found 7 among edges"),
    "an edge out of range": ({"edges": [[0, 4]]}, "expected two of the indices 0 to 3"),
    "an edge of floats": ({"edges": [[0.0, 2.0]]}, "found [0.0, 2.0] among edges"),
    "an edge of texts": ({"edges": [["0", "2"]]}, "among edges"),
    "an edge of truth values": ({"edges": [[False, 2]]}, "found [false, 2] among edges"),
    "a cycle": ({"edges": [[0, 2], [2, 0]]}, "the edges form a cycle"),
    "symbols: a dict": ({"idx_to_symbol": {"0": "Tom", "1": "Sam"}}, "key 'idx_to_symbol': found {\"0\": "),
    "symbols: null": ({"idx_to_symbol": None}, "key 'idx_to_symbol': found null, expected a list of words"),
    "symbols: numbers": ({"idx_to_symbol": [0, 1, 2, 3]}, "expected a list of words"),
    "symbols with spaces": ({"idx_to_symbol": ["Tom", "Sam", "a b", "c"]}, "expected a list of words"),
    "symbols twice": ({"idx_to_symbol": ["Tom", "Sam", "c", "c"]}, "found a word twice"),
    "root: null": ({"root": None}, "found [null, 2] among"),
    "root: a text": ({"root": "Tom"}, 'found ["Tom", 2] among'),
    "target not reached": ({"target": 3}, "found root 0 and target 3, expected root 0 or 1 and a path to the target"),
    "the root as target": ({"edges": [], "target": 0}, "found root 0 and target 0"),
    "root 2": ({"root": 2}, "found root 2 and target 2"),
    "neg_target: a list": ({"neg_target": [3]}, "found [2, [3]] among"),
}


def graph_problem(**changes: Any) -> Problem:
    return Problem("Is Tom a lempus or gorpus?", (), "Tom is a lempus.", {**GRAPH, **changes})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_cannot_be_used_is_named_and_counted(fault: str) -> None:
    changes, message = FAULTS[fault]
    problems = [graph_problem(), graph_problem(**changes), Problem("q", (), "a"), graph_problem(root=5)]
    (line,) = warnings_about(problems, TEXT, "data.json")
    assert line.startswith("warning: data.json: item 1")
    assert message in line
    assert "the graphs of 2 of 4 problems cannot be used" in line
    assert graph_warnings(problems, "data.json") == [line]
    assert [has_usable_graph(one) for one in problems] == [True, False, False, False]
    with pytest.raises(DataError, match=r"data\.json: item 1"):
        graph_stats(problems[:2], "data.json")


def test_graphs_as_published_pass_and_empty_columns_are_no_graphs() -> None:
    """Tables with a row for each problem have null for problems without a graph."""
    assert question_of(graph_problem()).target == 2
    empty = Problem("q", (), "a", dict.fromkeys(GRAPH))
    assert not is_graph_problem(empty)
    assert warnings_about([graph_problem(), empty], TEXT, "data.json") == []


def test_a_question_without_words_does_not_end_the_statistics() -> None:
    problem = Problem("", (), "Tom is a lempus.", GRAPH)
    assert graph_stats([problem]).answer_first == 0


def test_answers_that_scoring_changes_or_cannot_read_are_named_and_counted() -> None:
    answers = ["5", "1,234", "C#", "", "###", "Paris, France", "a #### 7", "C##"]
    problems = [Problem(f"q{number}", (), answer) for number, answer in enumerate(answers)]
    assert [is_scored(one, TEXT) for one in problems] == [True, True, True, False, False, True, True, False]
    assert warnings_about(problems, TEXT, "data.json") == [
        "warning: data.json: item 4, key 'answer': scoring reads nothing in \"###\"; 2 of 8 problems are answered but "
        "not scored",
        'warning: data.json: item 5, key \'answer\': scoring reads "Paris France" in "Paris, France"; the answers of '
        "2 of 8 problems are altered in this way, so look whether the scores mean what you expect",
    ]
    (line,) = warnings_about([Problem("q", (), "12 13")], SYMBOLIC, "data.json")
    assert 'scoring reads "12" in "12 13"' in line


def test_a_split_has_the_name_of_its_file() -> None:
    data = DataConfig(kind="file", val_path="v.json", test_path="t.json")
    assert (name_of(data, "test"), name_of(data, "validation")) == ("t.json", "v.json")
    assert name_of(DataConfig(kind="modular_sum"), "test") == "data=modular_sum, test"


def test_a_prepared_file_that_has_changed_is_told(tmp_path):
    with Outputs(tmp_path, "mine") as outputs:
        file = outputs.open("a.json")
        for one in (Problem("q", (), "1"), Problem("r", (), "2")):
            file.write(one)
    path = tmp_path / "a.json"
    (tmp_path / "other_manifest.json").write_text("[1")
    assert file_warnings(path) == file_warnings("data=prosqa, test") == file_warnings(tmp_path / "b.json") == []
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"q", b"p"))
    (line,) = file_warnings(str(path))
    assert line.startswith(f"warning: {path}: is not the file that mine_manifest.json describes (its SHA-256 differs)")
