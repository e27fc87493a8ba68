"""Problem files are read completely or refused by name; file sources require each file when it is needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.data.sources import DEBUG_TRAIN, DEBUG_VALID, open_source
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig

GOOD: list[dict[str, Any]] = [
    {"question": "1 + 2 + 3 =", "steps": ["3", "6"], "answer": "6", "edges": [[0, 1]], "id": 7},
    {"question": "Ist Öl naß?", "steps": [], "answer": "ja"},
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_problems(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2, ensure_ascii=False),
        "\n".join(json.dumps(item) for item in GOOD),
        "\n\n".join(json.dumps(item, ensure_ascii=False) for item in GOOD) + "\r\n\n",
    ],
    ids=["json", "json-indented", "json-lines", "json-lines-blank-lines"],
)
def test_json_and_json_lines_give_the_same_problems_and_keep_other_keys(tmp_path: Path, text: str) -> None:
    problems = load_problems(write(tmp_path / "p.json", text))
    assert [problem.as_dict() for problem in problems] == GOOD
    assert problems[0] == Problem("1 + 2 + 3 =", ("3", "6"), "6")
    assert problems[0].extra == {"edges": [[0, 1]], "id": 7}


def test_json_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """JSON allows U+2028, U+2029 and U+0085 inside a string as they are."""
    item = {"question": "a\u2028b\u0085c", "steps": ["d\u2029"], "answer": "e"}
    path = write(tmp_path / "p.jsonl", json.dumps(item, ensure_ascii=False) + "\n")
    assert load_problems(path)[0].as_dict() == item


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"question": "q",\n "steps": [}]', ["broken JSON at line 2, column 12"]),
        (json.dumps(GOOD[0]) + "\n\n{'question'}\n", ["broken JSON at line 3", "one problem per line"]),
        (b'[{"question": "\xff"}]', ["not UTF-8", "byte 15"]),
        ("[]", ["holds no problems", "at least one"]),
        (" \n", ["holds no problems", "at least one"]),
    ],
    ids=["json", "json-lines", "utf-8", "empty-list", "empty-file"],
)
def test_an_unreadable_file_is_refused_with_file_and_place(
    tmp_path: Path, content: str | bytes, words: list[str]
) -> None:
    path = write(tmp_path / "bad.json", content)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert [word for word in words if word not in message] == []


def test_a_missing_file_is_refused_with_the_expected_format(tmp_path: Path) -> None:
    message = refusal(tmp_path / "none.json")
    assert message == f"{tmp_path}/none.json: no such file; expected a JSON list of problems (question, steps, answer)"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            "text",
            ["the item itself", 'found str "text"', "expected an object with the keys question, steps and answer"],
        ),
        (["a"], ["the item itself", "found list", "expected an object"]),
        (
            {"question": "q", "steps": []},
            ["key 'answer': missing", "found the keys question, steps", "expected 'answer'"],
        ),
        ({}, ["key 'question': missing", "found the keys none"]),
        ({"question": 5, "steps": [], "answer": "a"}, ["key 'question'", "found int 5", "expected a string"]),
        ({"question": "q", "steps": [], "answer": 1.5}, ["key 'answer'", "found float 1.5", "expected a string"]),
        (
            {"question": "q", "steps": "s", "answer": "a"},
            ["key 'steps'", 'found str "s"', "expected a list of strings"],
        ),
        (
            {"question": "q", "steps": ["s", None], "answer": "a"},
            ["key 'steps', step 1", "found NoneType null", "expected a string"],
        ),
    ],
)
def test_the_first_bad_item_is_named_with_index_key_found_and_expected(
    tmp_path: Path, item: Any, words: list[str]
) -> None:
    path = write(tmp_path / "bad.json", json.dumps([GOOD[0], item, "also bad"]))
    message = refusal(path)
    assert message.startswith(f"{path}: item 1, ")
    assert [word for word in words if word not in message] == []


def test_a_long_value_is_shown_short(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", json.dumps([{"question": ["x" * 500], "steps": [], "answer": "a"}]))
    assert len(refusal(path)) < len(str(path)) + 160


def files(folder: Path, **changes: Any) -> DataConfig:
    """Settings of a file source whose training and validation files exist and whose test file does not."""
    paths = {key: str(write(folder / f"{key}.json", json.dumps(GOOD))) for key in ("train_path", "val_path")}
    return DataConfig(**{"kind": "file", **paths, "test_path": str(folder / "later.json"), **changes})


def test_a_missing_test_file_matters_only_when_it_is_used(tmp_path: Path) -> None:
    source = open_source(files(tmp_path, made_by="make the-files"), seed=0)
    assert source.train(0) == source.train(3) == source.valid() == load_problems(tmp_path / "train_path.json")
    with pytest.raises(DataError, match=r"data\.test_path=.*later\.json: no such file; make it with: make the-files"):
        source.test()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"train_path": "gone.json", "made_by": "make it so"},
            "data.train_path=gone.json: no such file; make it with: ",
        ),
        ({"val_path": "gone.json"}, "data.val_path=gone.json: no such file; set data.val_path=FILE"),
    ],
)
def test_a_missing_training_or_validation_file_is_refused_with_what_makes_it(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    source = open_source(files(tmp_path, **changes), seed=0)
    ask = (lambda: source.train(0)) if "train_path" in changes else source.valid
    with pytest.raises(DataError) as caught:
        ask()
    assert words in str(caught.value)
    assert changes.get("made_by", "") in str(caught.value)


def test_a_path_that_is_not_set_is_refused_when_asked_for(tmp_path: Path) -> None:
    source = open_source(files(tmp_path, test_path=None), seed=0)
    with pytest.raises(DataError, match=r"data\.test_path: found null, .*set data\.test_path=FILE"):
        source.test()


def test_debug_keeps_the_first_problems_and_all_words(tmp_path: Path) -> None:
    many = [{"question": f"q{number}", "steps": ["s"], "answer": "a"} for number in range(DEBUG_TRAIN + 1)]
    path = str(write(tmp_path / "many.json", json.dumps(many)))
    data = DataConfig(kind="file", train_path=path, val_path=path, test_path=path)
    whole, cut = open_source(data, seed=0), open_source(data, seed=0, debug=True)
    assert cut.train(0) == whole.train(0)[:5000]
    assert cut.valid() == cut.test() == whole.valid()[:32]
    assert (DEBUG_TRAIN, DEBUG_VALID) == (5000, 32)
    assert f"q{DEBUG_TRAIN}" in cut.vocabulary()


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    """JSON can express a lone surrogate, UTF-8 cannot, and tokenizers fail on it."""
    path = tmp_path / "half.json"
    path.write_text('[{"question": "q é", "steps": ["fine", "\\ud800"], "answer": "1"}]')
    with pytest.raises(DataError, match=r"item 0, its text: found str .*ud800.*no lone surrogates"):
        load_problems(path)


def test_blank_steps_are_left_out_and_counted_and_a_blank_answer_is_none(tmp_path: Path) -> None:
    """As in published conversions of GSM8K, in which 18 problems have the steps [""]."""
    items = [
        {"question": "a", "steps": [""], "answer": "1"},
        {"question": "b", "steps": ["x", " \n", "y", ""], "answer": "2"},
        {"question": "c", "steps": ["x"], "answer": " "},
        {"question": "d", "steps": [], "answer": ""},
    ]
    problems = load_problems(write(tmp_path / "p.json", json.dumps(items)))
    assert [one.steps for one in problems] == [(), ("x", "y"), ("x",), ()]
    assert [one.num_blank_steps for one in problems] == [1, 2, 0, 0]
    assert [one.has_answer for one in problems] == [True, True, False, False]
    assert [one.as_dict() for one in problems[2:]] == items[2:], "written as they were found"
    assert load_problems(tmp_path / "p.json", need_answers=False) == problems


@pytest.mark.parametrize(
    "item",
    [
        {"question": "q", "cot": "a\nb", "answer": "1"},
        {"question": "q", "steps": "a\nb", "answer": "1"},
        {"question": "q", "steps": [], "answer": 145},
    ],
)
def test_shapes_of_public_files_are_refused_with_the_command_that_converts_them(tmp_path: Path, item: Any) -> None:
    assert "python -m coconut_ds.data convert FILE OUT" in refusal(write(tmp_path / "p.json", json.dumps([item])))
