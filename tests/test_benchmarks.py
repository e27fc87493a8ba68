"""Published benchmarks: every row becomes a problem and comes back, and a file that is not as published is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from making_benchmarks import NUM_ROWS, ROWS, rows_of, write_copy, write_rows
from making_preprocessing import ROOT, files_of, script

from coconut_ds.data.benchmarks import BENCHMARKS, ROW, Benchmark, Part
from coconut_ds.data.problem import load_problems
from coconut_ds.data.published import at_revision, hub_rows, local_rows
from coconut_ds.data.sources import open_source
from coconut_ds.errors import DataError, ModelError
from coconut_ds.settings import DataConfig

benchmarks = script("benchmarks")
MADE_BY = "python preprocessing/benchmarks.py "


def small(benchmark: Benchmark) -> Benchmark:
    """The benchmark with the numbers of problems of the made-up rows."""
    parts = {
        name: replace(
            part,
            problems=(NUM_ROWS * len(part.splits) - 5 * bool(part.without_last),) if part.problems else (),
            last=min(part.last, 5),
            without_last=min(part.without_last, 5),
        )
        for name, part in benchmark.parts.items()
    }
    return replace(benchmark, parts=parts)


def data_of(group: str) -> DataConfig:
    """A group of ``config/data``, without Hydra, which takes a tenth of a second."""
    return DataConfig(**yaml.safe_load((ROOT / "config" / "data" / f"{group}.yaml").read_text()))


def data_groups() -> dict[str, list[str]]:
    """The groups that are made of benchmarks, and the names of these."""
    made = {path.stem: data_of(path.stem).made_by or "" for path in (ROOT / "config" / "data").glob("*.yaml")}
    return {name: by.removeprefix(MADE_BY).split() for name, by in sorted(made.items()) if by.startswith(MADE_BY)}


def test_every_benchmark_has_a_group_that_says_how_its_files_are_made():
    groups = data_groups()
    assert {name for names in groups.values() for name in names} == set(BENCHMARKS) == set(ROWS)
    for group, names in groups.items():
        data = data_of(group)
        files = {BENCHMARKS[name].file(part) for name in names for part in BENCHMARKS[name].parts}
        assert {Path(path).name for path in (data.train_path, data.val_path, data.test_path) if path} == files


@pytest.mark.parametrize(("number", "group"), enumerate(data_groups()))
def test_rows_become_problems_and_come_back(number, group, tmp_path, monkeypatch):
    """20 made-up rows of each split, in the published format; the data group reads what was made of them."""
    suffix = (".parquet", ".jsonl", ".json")[number % 3]
    for name in data_groups()[group]:
        benchmark, rows = small(BENCHMARKS[name]), rows_of(name)
        for split, own in rows.items():
            write_rows(tmp_path / name / f"{split}{suffix}", own)
        said = benchmarks.write(benchmark, tmp_path / "data", tmp_path / name, None, False)
        assert said.count("problems (") == len(benchmark.parts)
        for part, one in benchmark.parts.items():
            problems = load_problems(tmp_path / "data" / benchmark.file(part), need_answers=False)
            assert [benchmark.as_row(problem) for problem in problems] == one.rows(rows)
            assert not any(ROW in problem.extra for problem in problems), "no row needs to be kept as a whole"
    monkeypatch.chdir(tmp_path)
    data = data_of(group)
    test = open_source(data, 0).test()
    assert len(test) in (NUM_ROWS, 2 * NUM_ROWS)
    unread = sum(data.convention.gold(problem.answer) == "" for problem in test)
    assert unread == (2 if group in ("gsm_plus", "gsm_plus_mini") else 0)
    if data.train_path is not None:
        trained, valid = open_source(data, 0).train(0), open_source(data, 0).valid()
        assert all(len(problem.steps) == 2 for problem in (*trained, *valid))
        assert not {problem.question for problem in trained} & {problem.question for problem in valid}


@pytest.mark.slow
def test_a_local_copy_stands_for_the_hub(tmp_path, monkeypatch, capsys):
    """Through the library ``datasets``, for sources of both kinds; the rows are those of the files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    for name in ("svamp", "asdiv_a", "strategyqa_test"):
        benchmark = BENCHMARKS[name]
        copy = write_copy(benchmark, tmp_path / "mirror")
        assert hub_rows(benchmark, tmp_path / "mirror") == local_rows(benchmark, copy)[0] == rows_of(name)
    with pytest.raises(
        DataError, match=r"math500: the split test of HuggingFaceH4/MATH-500 cannot be read .*math500=PATH"
    ):
        hub_rows(BENCHMARKS["math500"], tmp_path / "mirror")


def test_a_file_that_is_not_as_published_is_refused_and_leaves_nothing(tmp_path, capsys):
    rows = rows_of("svamp_test")["test"]
    many = write_rows(tmp_path / "many.json", rows * 9)
    file, out = write_rows(tmp_path / "svamp.jsonl", rows), tmp_path / "out"
    for words, message in (
        ([f"svamp_test={file}"], "svamp_test, test: found 20 rows, expected 300"),
        ([f"svamp={file}"], "is made from the splits train and test; expected a folder with a file for each"),
        ([f"svamp_test={tmp_path / 'no'}"], "no: no such file or folder"),
        ([f"svamp={tmp_path}"], "has no file of the split train; found many.json, svamp.jsonl, expected train.json"),
        ([f"multiarith_test={many}"], "item 0 lacks question, final_ans; found the keys ID, Body, Question"),
        (["svamp2"], "svamp2: unknown benchmark; expected one of gsm8k_aug_nl, gsm_hard"),
    ):
        assert benchmarks.main([*words, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists() or files_of(out) == {}
    benchmark = BENCHMARKS["svamp_test"]
    known = {"test": Part(("test",), (NUM_ROWS,))}
    said = benchmarks.write(replace(benchmark, parts=known), out, file, None, False)
    digest = said.split("sha256 of the problems ")[1].split(",")[0]
    assert "20 problems (as published)" in said
    assert said.endswith("not checked: not known")
    right = {"test": replace(known["test"], content=digest)}
    assert benchmarks.write(replace(benchmark, parts=right), out, file, None, False).endswith(digest)
    other = write_rows(tmp_path / "other.jsonl", [{**rows[0], "Answer": "9"}, *rows[1:]])
    with pytest.raises(DataError, match=f"found problems with sha256 [0-9a-f]+, expected {digest}"):
        benchmarks.write(replace(benchmark, parts=right), out, other, None, True)
    with pytest.raises(DataError, match=r"svamp_test\.json: found other content than the new"):
        benchmarks.write(replace(benchmark, parts=known), out, other, None, False)
    manifest = json.loads((out / "benchmarks_manifest.json").read_text())["outputs"]["svamp_test.json"]
    assert manifest["options"] == {"benchmark": "svamp_test", "source": "ChilleD/SVAMP"}
    assert manifest["inputs"][0]["name"] == "svamp.jsonl"


def test_training_rows_without_an_answer_are_left_out_and_counted(tmp_path):
    """GSM8K-Aug-NL has some, which CODI leaves out too. Rows of another type keep their published row."""
    benchmark, rows = small(BENCHMARKS["gsm8k_aug_nl"]), rows_of("gsm8k_aug_nl")
    rows["train"][3]["answer"] = None
    rows["test"][4] |= {"answer": "#### 72", "cot": "A step.  Another  one."}
    for split, own in rows.items():
        write_rows(tmp_path / "raw" / f"{split}.json", own)
    said = benchmarks.write(benchmark, tmp_path, tmp_path / "raw", None, False)
    assert "19 problems, 1 without an answer left out (number not checked: not known)" in said
    test = load_problems(tmp_path / "gsm8k_aug_nl_test.json")
    assert (test[4].answer, test[4].steps, test[4].extra[ROW]) == ("72", ("A step.", "Another  one."), rows["test"][4])
    assert [benchmark.as_row(problem) for problem in test] == rows["test"]


def test_a_commit_can_be_named_and_the_list_shows_all(capsys):
    benchmark, place = benchmarks.requested("math500@0123abc=~/x")
    assert (str(benchmark.source), place) == ("HuggingFaceH4/MATH-500@0123abc", Path.home() / "x")
    assert at_revision(BENCHMARKS["math500"], None) is BENCHMARKS["math500"]
    assert benchmarks.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{one.file(part)} " in listed for one in BENCHMARKS.values() for part in one.parts)
    documented = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name in BENCHMARKS)


def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ModelError, match=r"datasets is missing; install it with: pip install -e .*\[hub\]"):
        hub_rows(BENCHMARKS["math500"], tmp_path)
