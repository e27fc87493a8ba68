"""Paths that are too long for the system are errors that say what to do, in every command that takes paths."""

from collections.abc import Callable

import pytest

from coconut_ds import evaluate, plan, probe, train
from coconut_ds.errors import ConfigError, paths_checked
from coconut_ds.runs import cli as runs
from serve import cli as server

NAME = "é" * 150
COMMANDS: list[tuple[Callable[..., int], list[str]]] = [
    (train.main, [f"data.train_path={NAME}"]),
    (train.main, ["data=prosqa_file", f"data.val_path=a/{NAME}/b"]),
    (evaluate.main, [f"checkpoint={NAME}", f"data={NAME}"]),
    (evaluate.main, [f"checkpoint={NAME}", "data=prosqa_eval"]),
    (evaluate.main, ["--compare", NAME, "b"]),
    (plan.main, [f"load_model_path={NAME}", "tokens=9"]),
    (plan.main, [f"data=prosqa_file data.train_path={NAME}"]),
    (probe.main, [f"checkpoint={NAME}", "question=1"]),
    (runs.main, ["list", "--root", NAME]),
    (runs.main, ["show", NAME]),
    (runs.main, ["verify", NAME]),
    (server.main, ["api", "--checkpoint", NAME]),
]


@pytest.mark.parametrize(("main", "words"), COMMANDS)
def test_a_name_that_is_too_long_is_a_plain_error(main, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(words)
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert "Traceback" not in said
    assert "error: " in said
    assert list(tmp_path.iterdir()) == []


def test_the_message_says_where_what_was_found_and_what_was_expected(tmp_path):
    with (
        pytest.raises(
            ConfigError, match=r"the path is too long: 'é{40}…' has 300 bytes, expected at most 255 for a name"
        ),
        paths_checked(),
    ):
        (tmp_path / NAME / "x").read_text()
    with pytest.raises(ConfigError, match=r"has 5,\d+ bytes, expected at most 4,095; set a shorter"), paths_checked():
        (tmp_path / "/".join(["ab"] * 1700)).stat()
    with pytest.raises(FileNotFoundError), paths_checked():
        (tmp_path / "x").read_text()
