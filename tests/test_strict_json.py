"""JSON files with faults that Python's parser does not report as such are refused by name, in every reader."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_config import composed, config

from coconut_ds.data.problem import load_problems
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import CheckpointError, CoconutError, ConfigError, DataError
from coconut_ds.evaluation.paired import compare_predictions
from coconut_ds.files import seal_of
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.identity import ingredients, read_ingredients
from coconut_ds.strict_json import JsonError, is_deeper, parse_json, read_json, shown
from coconut_ds.training.engine_file import read_engine_file
from coconut_ds.training.metrics import read_metrics

ELSEWHERE = {
    "strict_json.py",
    "serve/api/bodies.py",  # bodies of requests: its errors name fields
    "data/token_table.py",  # text that a hash protects
    "data/tokens.py",  # these two: the state of a library's object
    "data/token_bytes.py",
}
"""Files that call Python's own parser."""
NESTED = "[" * 400 + "1" + "]" * 400
LONG, DEEP = "1" * 5000, "[" * 100_000 + "]" * 100_000
FAULTS = {
    "a long number": (
        '{"a": "{[",\n "b": @}'.replace("@", LONG),
        "line 2: a number has 5,000 digits, expected at most 4,300",
    ),
    "deep nesting": ('{"a": "]",\n "b": @}'.replace("@", DEEP), "line 2: nested deeper than 100 lists"),
    "nesting that Python can read": ('{"a": @}'.replace("@", "[" * 500 + "]" * 500), "nested deeper than 100 lists"),
    "NaN": ('{"a": NaN}', "contains NaN"),
    "Infinity": ('{"a": [-Infinity]}', "contains -Infinity"),
    "a float beyond the range": ('{"a": 1e999}', "contains Infinity, or a number beyond the range"),
    "a key twice": ('{"a": 1, "b": {"a": 1, "a": 2}}', "key 'a' occurs twice in one object, with different values"),
    "half a character": ('{"a": "\\ud800"}', r'contains "\ud800", half of a surrogate pair'),
    "half a character in a key": ('{"\\udfff": 1}', r'contains "\udfff", half'),
    "broken": ('{"a": 1,\n}', "broken JSON at line 2, column 1"),
    "bytes": (b'{"a": "\xff"}', "is not UTF-8 text (invalid start byte at byte 7)"),
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def engine_file(path: Path) -> Any:
    return read_engine_file(config({"deepspeed.config": str(path)}))


def model_config(path: Path) -> Any:
    path.rename(path.parent / "config.json")
    made = composed().model_copy(update={"model": composed().model.model_copy(update={"model_id": str(path.parent)})})
    values: dict[str, Any] = {"engine_file": {}, "weights": "w", "tokenizer": "t", "code": {}, "batch": "1"}
    values["micro_batch"] = 1
    return ingredients(made, global_batch_size=1, data={"train": "a", "val": "b"}, **values)


def signature(path: Path) -> Any:
    path.rename(path.parent / "signature.json")
    return read_ingredients(path.parent)


def manifest_of_data(path: Path) -> Any:
    path.rename(path.parent / "x_manifest.json")
    with Outputs(path.parent, "x"):
        pass


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_message(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(JsonError) as caught:
        read_json(write(tmp_path / "file", text))
    assert message in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", [engine_file, signature, manifest_of_data, model_config])
def test_each_reader_names_the_file(reader: Callable[[Path], Any], fault: str, tmp_path: Path) -> None:
    """Hugging Face configurations may contain Infinity, for example as the limit of a time step."""
    path, (text, message) = tmp_path / "file", FAULTS[fault]
    if reader is model_config and message.startswith(("contains NaN", "contains -Inf", "contains Inf")):
        assert "model.architecture" in reader(write(path, text))
        return
    with pytest.raises(CoconutError) as caught:
        reader(write(path, text))
    assert str(tmp_path) in str(caught.value)
    assert message in str(caught.value) or reader is manifest_of_data
    str(caught.value).encode()


def test_a_model_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: found list, expected an object"):
        model_config(write(tmp_path / "file", "[1]"))


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_may_be_damaged_count_as_absent(fault: str, tmp_path: Path) -> None:
    content = FAULTS[fault][0]
    write(tmp_path / "manifest.json", content)
    assert seal_of(tmp_path) is None
    assert Holder.from_text(content if isinstance(content, bytes) else content.encode()) is None


GOOD = '{"question": "q", "steps": [], "answer": "a"}'
IN_PROBLEMS = {
    '{"question": "q", "steps": [], "answer": "a", "id": @}'.replace("@", LONG): "a number has 5,000 digits",
    '{"question": "q", "steps": [], "answer": @}'.replace("@", LONG): "a number has 5,000 digits",
    '{"question": "q", "steps": @, "answer": "a"}'.replace("@", DEEP): "nested deeper than 100 lists",
    '{"question": "q", "steps": [], "answer": "a", "id": @}'.replace("@", NESTED): "nested deeper than 100",
    '{"question": "q", "steps": @, "answer": "a"}'.replace("@", NESTED): "'steps', step 0: found list [[[",
    '{"question": "q", "steps": [], "answer": "a", "answer": "b"}': "key 'answer' occurs twice in one object",
    '{"question": NaN, "steps": [], "answer": "a"}': "key 'question': found float NaN, expected a string",
    '{"question": "q", "steps": [], "answer": 1e999}': "key 'answer': found float Infinity, expected a string",
    '{"question": {"\\ud800": 1}, "steps": [], "answer": "a"}': r'found dict {"\ud800": 1}, expected a string',
    '{"\\ud800": "q", "steps": [], "answer": "a"}': r"found the keys answer, steps, \ud800",
}


@pytest.mark.parametrize("item", IN_PROBLEMS, ids=lambda text: text[:60])
def test_a_file_of_problems_is_refused_with_item_or_line(item: str, tmp_path: Path) -> None:
    message = IN_PROBLEMS[item]
    for text in (f"[{GOOD},\n {GOOD},\n{item}, {GOOD}]", f"{GOOD}\n{GOOD}\n{item}\n{GOOD}\n"):
        path = write(tmp_path / "data.json", text)
        with pytest.raises(DataError) as caught:
            load_problems(path)
        told = str(caught.value)
        assert told.startswith(f"{path}: ")
        assert message in told
        assert "item 2" in told or (text.startswith("{") and "line 3" in told)
        assert len(told.encode()) < len(str(path)) + 300


def test_what_no_one_interprets_is_kept(tmp_path: Path) -> None:
    """NaN in other keys, as some tools write it; a key that occurs twice with the same value."""
    path = write(tmp_path / "data.json", '[{"question": "q", "steps": [], "answer": "a", "score": NaN, "answer": "a"}]')
    assert load_problems(path)[0].extra["score"] != load_problems(path)[0].extra["score"]


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "bytes"])
def test_predictions_with_a_fault_are_refused_with_their_line(fault: str, tmp_path: Path) -> None:
    good = json.dumps({"index": 0, "question": "q", "answer": "a", "correct": True})
    text, message = FAULTS[fault]
    assert isinstance(text, str)
    one, other = write(tmp_path / "a.jsonl", good), write(tmp_path / "b.jsonl", f"{good}\n{text.replace(chr(10), '')}")
    with pytest.raises(DataError) as caught:
        compare_predictions(one, other)
    assert f"{other}: line 2: is not JSON" in str(caught.value)
    assert message.partition(" line 2")[0].removeprefix("line 2: ") in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=40)
@given(VALUES, st.booleans())
def test_every_json_value_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value
    assert len(shown(value, 30)) <= 30


def depth(value: Any) -> int:
    """The largest number of lists and objects around a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((1 + depth(one) for one in inner), default=0)


@settings(max_examples=40)
@given(VALUES, st.integers(0, 4))
def test_depth_is_that_of_a_recursive_count(value: Any, limit: int) -> None:
    assert is_deeper(value, limit) == (depth(value) > limit)


def test_no_file_is_read_with_pythons_own_parser():
    """It accepts NaN and repeated keys, and raises errors without a place, or other ones, for what a crash has torn."""
    root = Path(__file__).parents[1]
    found = {
        path.relative_to(root).as_posix().removeprefix("coconut_ds/")
        for package in ("coconut_ds", "serve")
        for path in (root / package).rglob("*.py")
        # A distribution of its own, without this project's parser.
        if not path.is_relative_to(root / "serve" / "vllm")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert found == ELSEWHERE


def test_a_record_of_a_killed_process_is_read_up_to_its_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8"}\n{"a": 2}\n{"a": "\xe2\x80')
    assert read_metrics(path) == [{"a": "\u2028"}, {"a": 2}]
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is damaged \(broken JSON at line 2, column 7"):
        read_metrics(path)
