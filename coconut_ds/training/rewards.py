"""Rewards of completions: ``objective.grpo.reward``, the project's own or a user's function."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

from coconut_ds.data.problem import Problem, file_digest
from coconut_ds.errors import ConfigError, RewardError
from coconut_ds.formats import is_correct
from coconut_ds.settings import Config

EXACT_ANSWER = "exact_answer"
Function = Callable[[Problem, str], object]


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
            self._function = lambda problem, text: is_correct(text, problem.answer, data.text_format, data.answers)
        else:
            self._function = _load(self.name)

    def __call__(self, problem: Problem, text: str) -> float:
        """The reward of a completion of ``problem``, whose text is ``text``.

        Raises:
            RewardError: the function failed, or returned something else than a finite number.
        """
        try:
            value = self._function(problem, text)
        except Exception as error:
            raise self._failed(problem, text, f"raised {type(error).__name__}: {error}") from error
        try:
            # Accepts what numpy and torch use as numbers, but no text.
            number = math.nan if isinstance(value, (str, bytes)) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not math.isfinite(number):
            raise self._failed(problem, text, f"returned {value!r}, expected a finite number")
        return number

    def content(self) -> str | None:
        """A hash of the file that defines the user's function, for the signature of the run; None for our own."""
        if self.name == EXACT_ANSWER:
            return None
        file = sys.modules[self.name.partition(":")[0]].__file__
        return None if file is None else file_digest(file)

    def _failed(self, problem: Problem, text: str, what: str) -> RewardError:
        return RewardError(
            f"objective.grpo.reward={self.name}: the function {what}; problem: {_short(problem.question)!r}, "
            f"text of the completion: {_short(text)!r}; correct the function and start the same command again"
        )


def _load(name: str) -> Function:
    """The function ``package.module:function``; modules of the current folder are found too."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise ConfigError(
            f"objective.grpo.reward={name}: the module {module_name} cannot be imported ({type(error).__name__}: "
            f"{error}); expected package.module:function, importable from here or from {here}"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "no function" if function is None else f"a {type(function).__name__}"
        raise ConfigError(f"objective.grpo.reward={name}: {module_name} has {found} named {function_name}")
    loaded: Function = function
    return loaded


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
