"""``objective.grpo.reward``: a user's function, its mistakes, and a run that continues after they are corrected."""

import importlib
import sys

import pytest
from making_training import column, train
from torch_engine import run_folder, tiny_config, tiny_experiment

from coconut_ds.data.problem import Problem
from coconut_ds.errors import ConfigError, RewardError
from coconut_ds.runs.identity import signature
from coconut_ds.training.ingredients import run_ingredients
from coconut_ds.training.progress_bar import ProgressBar
from coconut_ds.training.rewards import Reward

GRPO = ("objective=grpo", "replay_prob=0", "grpo.num_generations=2", "warmup_steps=0", "num_epochs=1", "grpo.beta=0")
PROBLEM = Problem("1 2 3", ("1 3 2",), "3")


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes the module ``own_rewards`` of the current folder, as a user who starts a new process after each change."""
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "own_rewards") -> None:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop("own_rewards", None)
        importlib.invalidate_caches()

    yield write
    sys.path[:] = path
    for name in ("own_rewards", "own_numbers"):
        sys.modules.pop(name, None)


FAILS_LATER = """
calls = 20

def length(problem, text):
    global calls
    calls -= 1
    return len(text) / (calls >= 0)
"""


def test_the_same_command_continues_after_the_function_is_corrected(own_module, tmp_path):
    folder, command = run_folder(tmp_path), (*GRPO, "grpo.reward=own_rewards:length")
    own_module(FAILS_LATER)
    before = run_ingredients(tiny_experiment(*command))
    assert before["objective.grpo.reward"] == "own_rewards:length"
    with pytest.raises(RewardError, match="correct the function and start the same command again"):
        train(folder, *command)
    assert len(column(folder, "train/reward")) == 1
    own_module("def length(problem, text):\n    return len(text)")
    assert signature(run_ingredients(tiny_experiment(*command))) == signature(before)
    position, _ = train(folder, *command)
    assert position.global_step == 3
    assert len(column(folder, "train/reward")) == 3


def test_the_progress_line_shows_the_parts_of_the_loss_and_the_reward(tmp_path, monkeypatch):
    """The measure ``kl`` must not be shown in the place of the part ``kl``."""
    shown = []
    monkeypatch.setattr(ProgressBar, "update", lambda bar, stage, loss, tokens_per_s, parts: shown.append(parts))
    train(folder := run_folder(tmp_path), *GRPO[:-1], "size.train=8", "grpo.reward=making_rewards:brevity")
    (parts,) = shown
    assert list(parts) == ["policy", "kl", "reward"]
    assert parts["kl"] == column(folder, "train/loss_kl")[0]


FAULTS = """
class Number:
    def __float__(self):
        raise OSError("disk")

    def __repr__(self):
        raise LookupError("no text")

class Unprintable(Exception):
    def __str__(self):
        raise self

def large(problem, text):
    return 10**400

def number(problem, text):
    return Number()

def unprintable(problem, text):
    raise Unprintable

def leaves(problem, text):
    raise SystemExit(3)

def imports(problem, text):
    from own_numbers import one
    return one
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("large", "returned 10{199}…, expected a finite number"),
        ("number", "returned something whose text raises LookupError, expected a finite number"),
        ("unprintable", "raised Unprintable: something whose text raises Unprintable"),
        ("leaves", "raised SystemExit: 3"),
    ],
)
def test_whatever_the_function_or_its_value_raises_is_a_reward_error(own_module, name, words):
    own_module(FAULTS)
    with pytest.raises(RewardError, match=f"own_rewards:{name}: the function {words}; problem: '1 2 3'"):
        Reward(tiny_config(*GRPO, f"grpo.reward=own_rewards:{name}"))(PROBLEM, "3")


@pytest.mark.parametrize("has_here", [False, True])
def test_a_function_may_import_from_the_current_folder_when_it_is_called(own_module, tmp_path, has_here):
    own_module(FAULTS)
    own_module("one = 1", "own_numbers")
    sys.path[:] = [str(tmp_path)] * has_here + [path for path in sys.path if path != str(tmp_path)]
    before = list(sys.path)
    assert Reward(tiny_config(*GRPO, "grpo.reward=own_rewards:imports"))(PROBLEM, "3") == 1
    assert sys.path == (before if has_here else [*before, str(tmp_path)])


def test_a_module_that_ends_the_process_or_has_no_text_for_its_error_is_refused(own_module):
    for text, words in (
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Odd(Exception):\n    def __str__(self):\n        raise self\nraise Odd", "Odd: something whose text"),
    ):
        own_module(text)
        with pytest.raises(ConfigError, match=f"own_rewards cannot be imported \\({words}"):
            Reward(tiny_config(*GRPO, "grpo.reward=own_rewards:length"))
