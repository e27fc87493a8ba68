"""Scripts that convert published data files: no problem is lost, and no unfinished file remains."""

import functools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making_preprocessing import FIXTURES, ROOT, files_of, gsm, prontoqa

from coconut_ds.data.problem import load_problems
from coconut_ds.errors import DataError

REAL = ROOT.parent / "shared" / "data"  # larger samples of the same files, if they were downloaded


def source(fixture: str, real: str) -> list[Any]:
    absent = pytest.mark.skipif(not (REAL / real).is_file(), reason="no larger sample here")
    return [FIXTURES / fixture, pytest.param(REAL / real, marks=absent)]


# GSM8K


@pytest.mark.parametrize("path", source("gsm_valid.txt", "gsm8k_aug_valid.txt"))
def test_every_gsm_line_comes_back_from_its_problem(path: Path, tmp_path: Path) -> None:
    assert gsm.main([str(path), "--out", str(tmp_path)]) == 0
    problems = load_problems(tmp_path / "gsm_valid.json")
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [gsm.as_line(problem) for problem in problems] == lines
    assert all(
        set(item) == {"question", "steps", "answer"} for item in json.loads(files_of(tmp_path)["gsm_valid.json"])
    )
    assert problems[0].steps == ("<<4-2=2>>", "<<2/.5=4>>", "<<12/4=3>>", "<<100*3=300>>")
    assert problems[0].question.endswith("How much does he pay per year?")
    assert any("," in problem.answer for problem in problems)
    assert all(problem.steps == () for problem, line in zip(problems, lines, strict=True) if "|| ####" in line)


def test_odd_spacing_in_a_line_neither_splits_a_calculation_nor_is_lost() -> None:
    line = "How  many? || <<1 + 2=3>>  <<3*4=12>>#### 1,200 "
    problem = gsm.as_problem(line, "here")
    assert (problem.question, problem.steps) == ("How  many? ", ("<<1 + 2=3>>", "<<3*4=12>>"))
    assert problem.answer == "1,200"
    assert gsm.as_line(problem) == line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"How many? <<1+1=2>> #### 2", r"line 3: found '\|\|' 0 times in 'How many\?.*expected question\|\|step"),
        (b"How many?||<<1+1=2>> 2", "line 3: found '####' 0 times"),
        (b"How many?||<<1+1=2>> #### 2How long?||<<3-1=2>> #### 2", r"line 3: found '\|\|' 2 times"),
        (b"How many?||<<1+1=2>> #### ", "line 3: found no answer"),
        (b" ||<<1+1=2>> #### 2", "line 3: found no question"),
        (b"", r"line 3: found '\|\|' 0 times in ''"),
        (b"How m\xffny?||<<1+1=2>> #### 2", "line 3: is not UTF-8 text .* at byte 5"),
    ],
)
def test_a_bad_gsm_line_is_named_and_leaves_all_as_it_was(
    line: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (FIXTURES / "gsm_valid.txt").read_bytes()
    out = tmp_path / "out"
    (tmp_path / "train.txt").write_bytes(good)
    assert gsm.main([str(tmp_path / "train.txt"), "--out", str(out)]) == 0
    before = files_of(out)
    (tmp_path / "test.txt").write_bytes(b"".join([*good.splitlines(keepends=True)[:2], line, b"\n", good]))
    (tmp_path / "train.txt").write_bytes(good + good)
    capsys.readouterr()
    assert gsm.main([str(tmp_path / "train.txt"), str(tmp_path / "test.txt"), "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"{tmp_path / 'test.txt'}: ")
    assert errors.count("\n") == 1
    with pytest.raises(DataError, match=message):
        raise DataError(errors)
    assert files_of(out) == before


def test_gsm_files_that_are_absent_empty_or_of_no_split_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").touch()
    (tmp_path / "a_train.txt").touch()
    for names, message in {
        ("valid.txt",): "valid.txt: no such file; download it with: bash preprocessing/gsm_icot.bash",
        ("train.txt",): "train.txt: holds no problems",
        ("trains.txt",): "ends with 'trains', expected train, valid or test",
        ("train.txt", "a_train.txt"): "a_train.txt: is a second file for gsm_train.json",
    }.items():
        assert gsm.main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert gsm.main(["--raw", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "valid.txt: no such file" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == {}


def test_converting_holds_a_line_at_a_time(tmp_path: Path) -> None:
    """A file of 1.3 MB is written with 400 kB of memory, most of it the buffer of the checksum."""
    line = (FIXTURES / "gsm_valid.txt").read_bytes().split(b"\n")[0] + b"\n"
    (tmp_path / "train.txt").write_bytes(line * 5000)
    tracemalloc.start()
    try:
        assert gsm.main([str(tmp_path / "train.txt"), "--out", str(tmp_path)]) == 0
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()
    assert len(load_problems(tmp_path / "gsm_train.json")) == 5000


# ProntoQA


@pytest.mark.parametrize("path", source("prontoqa.json", "prontoqa_5hop_0shot_random.json"))
def test_every_prontoqa_example_comes_back_from_one_problem(path: Path, tmp_path: Path) -> None:
    assert prontoqa.main([str(path), "--out", str(tmp_path)]) == 0
    splits = [load_problems(tmp_path / f"prontoqa_{split}.json") for split in ("train", "valid", "test")]
    examples = list(json.loads(path.read_text()).values())
    sizes = list(prontoqa.split_sizes(len(examples)).values())
    assert [len(problems) for problems in splits] == sizes
    back = [prontoqa.as_example(problem) for problems in splits for problem in problems]
    assert sorted(map(json.dumps, back)) == sorted(map(json.dumps, examples)), "each example once, in one split"
    assert back != examples
    first = prontoqa.as_problem(examples[0], "here")
    assert first.question.endswith(" Max is a lorpus. True or false: Max is not wooden.")
    assert first.steps[0] == "Max is a vumpus. Each vumpus is a brimpus."
    assert first.steps[5:] == ("Max is not wooden.",)


def test_prontoqa_files_are_those_of_their_seed(tmp_path: Path) -> None:
    def made(seed: str, folder: str) -> dict[str, bytes]:
        out = tmp_path / folder
        assert prontoqa.main([str(FIXTURES / "prontoqa.json"), "--out", str(out), "--seed", seed]) == 0
        return files_of(out)

    first = made("0", "a")
    assert made("0", "b") == first
    assert made("1", "c")["prontoqa_train.json"] != first["prontoqa_train.json"]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (10_000, [9000, 200, 800]),
        (12_000, [9000, 200, 800]),
        (5000, [4500, 100, 400]),
        (120, [108, 2, 10]),
        (3, [1, 1, 1]),
    ],
)
def test_splits_are_those_of_the_paper_or_their_proportions(count: int, sizes: list[int]) -> None:
    assert list(prontoqa.split_sizes(count).values()) == sizes
    with pytest.raises(DataError, match="found 2 examples, expected at least 3"):
        prontoqa.split_sizes(2)


def test_repeated_questions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three twins, one in each split: two repeat the first, both from another split."""
    raw = json.loads((FIXTURES / "prontoqa.json").read_text())
    raw = {"a": raw["example1"], "b": raw["example1"], "c": raw["example1"]}
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    assert prontoqa.main([str(tmp_path / "raw.json"), "--out", str(tmp_path)]) == 0
    assert "the question of an earlier one: 2, of them 2 in another split" in capsys.readouterr().out


def drop(key: str, test: dict[str, Any]) -> None:
    del test[key]


def put(key: str, value: Any, test: dict[str, Any]) -> None:
    test[key] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (functools.partial(drop, "query"), "found the keys question, chain_of_thought, answer, expected"),
        (functools.partial(put, "proof", []), "found the keys question, query, chain_of_thought, answer, proof, exp"),
        (functools.partial(put, "question", 3), "key 'question': found 3, expected text"),
        (functools.partial(put, "query", "Prove: Max is hot."), "key 'query': found \"Prove: Max is hot.\", expected"),
        (functools.partial(put, "answer", "true"), 'key \'answer\': found "true", expected "True" or "False"'),
        (functools.partial(put, "chain_of_thought", "Max is hot."), "key 'chain_of_thought': found \"Max is hot.\", e"),
        (
            functools.partial(put, "chain_of_thought", ["Max is hot.", "A. B."]),
            "key 'chain_of_thought', sentence 1: found \"A. B.\", expected text with a full stop at its end",
        ),
    ],
)
def test_a_bad_prontoqa_example_is_named_and_leaves_all_as_it_was(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads((FIXTURES / "prontoqa.json").read_text())
    change(raw["example3"]["test_example"])
    path, out = tmp_path / "raw.json", tmp_path / "out"
    path.write_text(json.dumps(raw))
    assert prontoqa.main([str(FIXTURES / "prontoqa.json"), "--out", str(out)]) == 0
    before = files_of(out)
    capsys.readouterr()
    assert prontoqa.main([str(path), "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"{path}: example 'example3'")
    assert message in errors
    assert errors.count("\n") == 1
    assert files_of(out) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; make it with ProntoQA's run_experiment.py"),
        ('{"example1": ', "broken JSON at line 1, column 14"),
        ("[]", "found [], expected an object of examples"),
        ("{}", "found {}, expected an object of examples"),
        ('{"example1": {}, "example1": {}}', "key 'example1' occurs twice"),
        (f'{{"example1":\n {"1" * 5000}}}', "line 2: a number has 5,000 digits"),
        ("[" * 100_000, "line 1: nested deeper than 100"),
        ('{"example1": {"in_context_example0": {}}}', "example 'example1': found the keys in_context_example0, exp"),
    ],
)
def test_a_bad_prontoqa_file_is_refused(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw.json"
    if text is not None:
        # The last case needs enough examples to reach the first of them.
        raw.write_text(text.replace("}}}", '}}, "b": {}, "c": {}}'))
    assert prontoqa.main([str(raw), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"{raw}: ")
    assert message in errors
    assert not (tmp_path / "out").exists()


# Writing
