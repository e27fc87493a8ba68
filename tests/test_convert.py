"""Files in the shapes of public data sets become problems, with the mapping shown, or are refused by item and key."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from coconut_ds.data.__main__ import main
from coconut_ds.data.convert import Converter, KeyMapping
from coconut_ds.data.problem import load_problems

GSM = {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 72.\n#### 1,072"}
SVAMP = {
    "ID": "chal-1",
    "Body": "Each costs 76 dollars.",
    "Question": "How much?",
    "Equation": "( 76.0 )",
    "Answer": 51.0,
}
SHAPES: dict[str, tuple[Any, str, list[str], str, dict[str, Any]]] = {
    # content of the file, then question, steps, answer and other keys of the last problem
    "cot": ([{"question": "q", "cot": "a b\n\nc d\n", "answer": 145}], "q", ["a b", "c d"], "145", {}),
    "calculations": (
        [{"question": "q", "cot": "<<4-2=2>> <<2 + 1=3>>", "answer": "3"}],
        "q",
        ["<<4-2=2>>", "<<2 + 1=3>>"],
        "3",
        {},
    ),
    "steps as a text": ([{"question": "q", "steps": "a\nb", "answer": "3"}], "q", ["a", "b"], "3", {}),
    "GSM8K": ([GSM], "How many?", ["She sold 48/2 = <<48/2=24>>24 clips.", "In all 72."], "1,072", {}),
    "a marked solution": ([{"problem": "q", "solution": "a\n#### 5", "answer": "5"}], "q", ["a"], "5", {}),
    "an answer in the steps": ([{"query": "q", "rationale": "a\n#### 5"}], "q", ["a"], "5", {}),
    "SVAMP": ([SVAMP], "Each costs 76 dollars. How much?", [], "51", {"ID": "chal-1", "Equation": "( 76.0 )"}),
    "MultiArith": ([{"iIndex": 1, "sQuestion": "q", "lSolutions": [7.0]}], "q", [], "7", {"iIndex": 1}),
    "a table by name": (
        {"a": {"question": "p", "answer": 1}, "b": {"question": "q", "answer": True}},
        "q",
        [],
        "True",
        {},
    ),
    "a list under a key": ({"version": 1, "data": [{"question": "q", "answer": 0.10}]}, "q", [], "0.1", {}),
    "rows": ({"rows": [{"row_idx": 0, "row": {"question": "q", "answer": 1.5e-7}}]}, "q", [], "0.00000015", {}),
    "blank steps": ([{"question": "q", "steps": ["", "a"], "answer": "1"}], "q", ["a"], "1", {}),
    "no answer": ([{"question": "q", "steps": ["a"], "answer": None}], "q", ["a"], "", {}),
    "not finite": ([{"question": "q", "answer": "1", "score": float("nan")}], "q", [], "1", {"score": None}),
}


def converted(tmp_path: Path, content: Any, *options: str, name: str = "in.json") -> int:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return main(["convert", str(path), str(tmp_path / "out.json"), *options])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_public_shape_becomes_problems(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, question, steps, answer, extra = SHAPES[shape]
    assert converted(tmp_path, content) == 0
    problem = load_problems(tmp_path / "out.json")[-1]
    assert (problem.question, list(problem.steps), problem.answer) == (question, steps, answer)
    assert problem.extra == extra
    told = capsys.readouterr().out
    assert f"problems written to {tmp_path / 'out.json'}" in told
    assert all(f"  {part:<9} " in told for part in ("question", "steps", "answer", "kept"))


def test_the_mapping_and_what_was_changed_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"q": "one", "cot": "a\nb", "answer": 2, "id": 1}, {"q": "two", "cot": "", "answer": "", "id": 2}]
    assert converted(tmp_path, items, "--question", "q") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  question  from q",
        "  steps     from cot",
        "  answer    from answer; numbers written as text: 1, such as 2 → 2",
        "  kept      id",
        "first problem",
        '  question  "one"',
        '  step 1    "a"',
        '  step 2    "b"',
        '  answer    "2"',
        "problems without steps: 1",
        "problems without an answer: 1",
    ]


def test_json_lines_csv_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    rows = [{"question": "a, b", "cot": "x\ny", "answer": "3"}, {"question": "c", "cot": "", "answer": "4"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    found = []
    for name, text in {
        "in.json": json.dumps(rows),
        "in.jsonl": "\n".join(map(json.dumps, rows)),
        "in.csv": 'question,cot,answer\n"a, b","x\ny",3\nc,,4\n',
    }.items():
        assert converted(tmp_path, text, name=name) == 0
        found.append((tmp_path / "out.json").read_bytes())
    assert main(["convert", str(tmp_path / "in.parquet"), str(tmp_path / "out.json")]) == 0
    assert {*found, (tmp_path / "out.json").read_bytes()} == {found[0]}
    assert [one.steps for one in load_problems(tmp_path / "out.json")] == [("x", "y"), ()]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([{"text": "q"}], [], "no key is named like a question; found the keys text; set --question KEY"),
        (
            [{"question": "q", "answer": "1"}, {"question": "q", "answer": [1, 2]}],
            [],
            "item 1, key 'answer': found [1, 2]",
        ),
        ([{"question": "q"}, {"question": None}], [], "item 1, key 'question': found null, expected the text"),
        ([{"question": "q"}, {"id": 1}], [], "item 1, key 'question': found null"),
        ([{"question": "q"}, "text"], [], 'item 1: found "text", expected an object'),
        ([{"question": "q", "cot": 5}], [], "item 0, key 'cot': found 5, expected a list of steps or a text"),
        ([{"question": "q", "steps": [{"a": 1}]}], [], "item 0, key 'steps', step 0: found {"),
        ([{"question": "q", "answer": float("inf")}], [], "item 0, key 'answer': found Infinity"),
        (
            [{"question": "q", "cot": "a #### 5", "answer": "6"}],
            [],
            "found the answer \"5\" after '####' in 'cot' and \"6\"",
        ),
        (
            [{"question": "q", "cot": "a", "answer": "b #### 5"}],
            [],
            "found steps in 'cot' and before '####' in 'answer'",
        ),
        ('[{"question": "q", "steps": ["\\ud800"]}]', [], 'item 0: contains "\\ud800", expected no lone surrogates'),
        ('[{"question": "q", "x": @}]'.replace("@", "[" * 400 + "]" * 400), [], "item 0: nested deeper than 100 lists"),
        ([{"question": "q"}], ["--answer", "solved"], "no item has the key 'solved'; found the keys question"),
        (
            {"train": [{"question": "q"}], "test": [{"question": "q"}]},
            [],
            "under train, test; choose one with --part KEY",
        ),
        ({"train": [{"question": "q"}]}, ["--part", "dev"], "--part dev: expected one of train"),
        ("[]", [], "holds no problems"),
        ('[{"question": ', [], "broken JSON at line 1"),
        ("{" + chr(34) + "a" + chr(34) + ": " + "1" * 5000 + "}", [], "a number has 5,000 digits"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_is_written(
    content: Any, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converted(tmp_path, content, *options) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'in.json'}: ")
    assert message in told
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_a_file_with_other_content_is_replaced_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert (
        converted(tmp_path, [{"question": "q", "answer": 1}])
        == converted(tmp_path, [{"question": "q", "answer": 1}])
        == 0
    )
    before = out.read_bytes()
    assert converted(tmp_path, [{"question": "q", "answer": 2}]) == 2
    assert "exists with other content and was not changed; add --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert converted(tmp_path, [{"question": "q", "answer": 2}], "--overwrite") == 0
    assert load_problems(out)[0].answer == "2"


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n#"), min_size=1)


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3), TEXTS, st.integers()), min_size=1, max_size=4))
def test_problems_in_the_format_of_this_project_stay_as_they_are(rows: list[tuple[str, list[str], str, int]]) -> None:
    items = [{"question": q, "steps": steps, "answer": answer, "id": number} for q, steps, answer, number in rows]
    made = list(Converter(KeyMapping.found_in(items, "f"), "f").convert(items))
    for (question, steps, answer, number), problem in zip(rows, made, strict=True):
        assert (problem.question, problem.answer, problem.extra) == (question, answer, {"id": number})
        assert list(problem.steps) == [step.strip() for step in steps if step.strip()]
