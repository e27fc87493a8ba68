"""The problems of a run: cached if they come from a file, saved to files if they are generated."""

import json
from pathlib import Path

import pytest
from making_graphs import problems_of

from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.data.sources import open_source
from coconut_ds.data.tokens import build_word_tokenizer, tokenize
from coconut_ds.errors import DataError
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.problems import RunProblems


def problems(start: int, stop: int) -> list[Problem]:
    return [Problem(f"{number} + 1 =", (str(number),), str(number + 1)) for number in range(start, stop)]


def written(path: Path, contents: list[Problem]) -> Path:
    path.write_text(json.dumps([problem.as_dict() for problem in contents]))
    return path


def config_of(folder: Path, train: list[Problem], valid: list[Problem], test: list[Problem] | None) -> Config:
    for name, contents in {"train": train, "valid": valid, "test": test}.items():
        if contents is not None:
            written(folder / f"{name}.json", contents)
    paths = [f"data.{key}_path={folder / name}.json" for key, name in (("train", "train"), ("val", "valid"))]
    return compose_config([*paths, f"data.test_path={folder / 'test'}.json", f"data.cache_path={folder / 'cache'}"])


def opened(config: Config) -> tuple[RunProblems, list[str]]:
    lines: list[str] = []
    source = open_source(config.data, config.run.seed)
    return RunProblems(source, config.data, build_word_tokenizer(source.vocabulary()), lines.append), lines


def test_problems_of_a_file_are_those_of_the_file_in_every_epoch(tmp_path: Path) -> None:
    config = config_of(tmp_path, problems(0, 30), problems(30, 40), problems(40, 50))
    run, lines = opened(config)
    tokenizer = build_word_tokenizer(open_source(config.data, 0).vocabulary())
    assert list(run.train(0)) == list(run.train(7)) == tokenize(tokenizer, load_problems(tmp_path / "train.json"))
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    assert [line for line in lines if "warning" in line] == []


def test_questions_in_two_files_are_counted_in_a_warning(tmp_path: Path) -> None:
    _, lines = opened(config_of(tmp_path, problems(0, 30), problems(28, 40), problems(39, 44)))
    assert [line for line in lines if "warning" in line] == [
        "warning: 2 of 12 validation questions are training questions too",
        "warning: 1 of 5 test questions are validation questions too",
    ]


def test_words_that_the_tokenizer_does_not_know_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, problems(0, 30), problems(30, 40), None)
    source, lines = open_source(config.data, config.run.seed), list[str]()
    RunProblems(source, config.data, build_word_tokenizer(["+ 1 ="]), lines.append)
    assert "note: 20.0% of the tokens of the validation questions are unknown to the tokenizer" in lines
    with pytest.raises(DataError, match=r"unknown to the tokenizer; set model.tokenizer to one that knows these words"):
        RunProblems(source, config.data, build_word_tokenizer(["other"]), lines.append)


def test_the_same_questions_for_validation_and_test_are_refused(tmp_path: Path) -> None:
    """Also in another order and under another file name."""
    config = config_of(tmp_path, problems(0, 30), problems(30, 40), problems(30, 40)[::-1])
    with pytest.raises(DataError, match=r"valid\.json and data\.test_path=.*hold the same questions.*set another"):
        opened(config)


def test_a_test_file_that_is_not_there_yet_does_not_matter(tmp_path: Path) -> None:
    run, _ = opened(config_of(tmp_path, problems(0, 3), problems(3, 6), None))
    assert len(run.train(0)) == 3


def test_generated_problems_are_written_down(tmp_path: Path) -> None:
    config = compose_config(["data=synthetic", "size={train: 20, valid: 5, test: 6}", "online=true"])
    run, _ = opened(config)
    run.train(2)
    run.write(tmp_path / "problems")
    source = open_source(config.data, config.run.seed)
    there = {path.stem: load_problems(path) for path in (tmp_path / "problems").glob("[tv]*.json")}
    assert there == {"train": source.train(2), "valid": source.valid(), "test": source.test()}
    assert there["train"][0].extra == source.train(2)[0].extra
    manifest = json.loads((tmp_path / "problems" / "problems_manifest.json").read_text())
    assert manifest["outputs"]["train.json"]["options"] == {"epoch": 2}


def test_validation_problems_that_cannot_be_scored_or_analysed_are_named_before_training(tmp_path: Path) -> None:
    graph = {"idx_to_symbol": ["a", "b"], "edges": None, "root": 0, "target": 1, "neg_target": 1}
    valid = [*problems(30, 35), Problem("50 + 1 =", ("5",), ""), Problem("60 + 1 =", (), "7", graph)]
    _, lines = opened(config_of(tmp_path, problems(0, 30), valid, None))
    assert [line.partition(";")[0] for line in lines if "warning" in line] == [
        f"warning: {tmp_path / 'valid.json'}: item 6, key 'edges': found null, expected a list of pairs of nodes"
    ]
    with pytest.raises(DataError, match=r"valid\.json: no problem has an answer .*set data\.val_path"):
        opened(config_of(tmp_path, problems(0, 30), [Problem("5 + 1 =", (), "###")], None))


def test_a_test_file_with_hidden_answers_does_not_end_training(tmp_path: Path) -> None:
    config = config_of(tmp_path, problems(0, 3), problems(3, 6), None)
    (tmp_path / "test.json").write_text(json.dumps([{"question": "9 + 1 ="}, {"question": "3 + 1 =", "answer": ""}]))
    assert "warning: 1 of 2 test questions are validation questions too" in opened(config)[1]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_problem_without_edges_is_named_where_thoughts_learn_frontiers(tmp_path: Path, split: str) -> None:
    """Before anything is trained; the path needs no edges."""
    some = problems_of("text", 8)
    contents = {"train": some[:6], "valid": some[6:]}
    contents[split][1] = Problem("No graph?", ("one",), "two")
    config = config_of(tmp_path, contents["train"], contents["valid"], None)
    source = open_source(config.data, config.run.seed)
    tokenizer = build_word_tokenizer(
        [text for one in [*some, contents[split][1]] for text in (one.question, *one.steps)]
    )
    hops = HopReader(tokenizer, config.data.text_format)
    with pytest.raises(
        DataError, match=rf"{split}\.json: item 1: key 'idx_to_symbol' is missing.*thought_targets=path"
    ):
        RunProblems(source, config.data, tokenizer, print, hops=hops, needs_graphs=True)
    kept = RunProblems(source, config.data, tokenizer, print, hops=hops).train(0)
    assert [kept.hops(index) for index in range(6)] == [hops.hops(problem) for problem in contents["train"]]
