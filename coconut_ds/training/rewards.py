"""Rewards of completions: ``objective.grpo.reward``, the project's own or a user's function."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

from coconut_ds.data.problem import Problem
from coconut_ds.errors import ConfigError, RewardError
from coconut_ds.settings import Config

EXACT_ANSWER = "exact_answer"
Function = Callable[[Problem, str], object]
ANY_ERROR = (Exception, SystemExit)
"""What the user's function and the value that it returns may raise. All of it becomes a ``RewardError``, which all
ranks raise: a rank that ended alone would leave the others waiting for it."""


class Reward:
    """The reward of a completion, as a finite number."""

    def __init__(self, config: Config) -> None:
        """Loads the function that the configuration names.

        Raises:
            ConfigError: there is no such module or function.
        """
        self.name, data = config.objective.grpo.reward, config.data
        self._function: Function
        if self.name == EXACT_ANSWER:
            scoring = data.convention
            self._function = lambda problem, text: scoring.is_correct(text, problem.answer, data.text_format)
        else:
            self._function = _load(self.name)

    def __call__(self, problem: Problem, text: str) -> float:
        """The reward of a completion of ``problem``, whose text is ``text``.

        Raises:
            RewardError: the function failed, or returned something else than a finite number.
        """
        try:
            value = self._function(problem, text)
        except ANY_ERROR as error:
            found = _described(str, error)
            raise self._failed(problem, text, f"raised {type(error).__name__}: {found}") from error
        try:
            # Accepts what numpy and torch use as numbers, but no text.
            number = math.nan if isinstance(value, (str, bytes)) else float(value)  # type: ignore[arg-type]
        except ANY_ERROR:
            number = math.nan
        if not math.isfinite(number):
            found = _described(repr, value)
            raise self._failed(problem, text, f"returned {found}, expected a finite number")
        return number

    def _failed(self, problem: Problem, text: str, what: str) -> RewardError:
        return RewardError(
            f"objective.grpo.reward={self.name}: the function {what}; problem: {_short(problem.question)!r}, "
            f"text of the completion: {_short(text)!r}; correct the function and start the same command again"
        )


def _load(name: str) -> Function:
    """The function ``package.module:function``; modules of the current folder are found too, also by imports that the
    function makes when it is called."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ANY_ERROR as error:
        # Importing runs the user's code, which may raise anything.
        raise ConfigError(
            f"objective.grpo.reward={name}: the module {module_name} cannot be imported ({type(error).__name__}: "
            f"{_described(str, error)}); expected package.module:function, importable from here or from {here}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "no function" if function is None else f"a {type(function).__name__}"
        raise ConfigError(f"objective.grpo.reward={name}: {module_name} has {found} named {function_name}")
    loaded: Function = function
    return loaded


def _described(describe: Callable[[object], str], value: object) -> str:
    """``str`` or ``repr`` of a value, cut if it is long. They may run code of the user, which may fail too."""
    try:
        return _short(describe(value))
    except ANY_ERROR as error:
        return f"something whose text raises {type(error).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
