"""The registry of data sources: a name of ``data.kind`` to the problems of three splits.

A new source is one file, one line in ``SOURCES`` and one YAML in ``config/data``.
"""

from collections.abc import Callable, Sequence, Set
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Protocol, Self

from coconut_ds.data.problem import Problem, iter_problems, load_problems
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig
from coconut_ds.settings.data import SOURCES

DEBUG_TRAIN, DEBUG_VALID = 5000, 32
"""Problems kept under ``run.debug``."""


class Source(Protocol):
    """Problems of three splits. Validation and test never change; training may, from epoch to epoch."""

    def train(self, epoch: int) -> list[Problem]:
        """Training problems of an epoch."""

    def valid(self) -> list[Problem]:
        """Validation problems."""

    def test(self) -> list[Problem]:
        """Test problems."""

    def vocabulary(self) -> list[str]:
        """Texts that hold every word the tokenizer must know."""


class FileSource:
    """Problems from files, read when asked for."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The files that ``data`` names; the seed plays no part."""
        return cls(data)

    def train(self, epoch: int) -> list[Problem]:
        """The training file, in every epoch."""
        return load_problems(self.path("train_path"))

    def valid(self) -> list[Problem]:
        """The validation file."""
        return load_problems(self.path("val_path"))

    def test(self) -> list[Problem]:
        """The test file; steps and answers may be missing, then texts are made and not scored."""
        return load_problems(self.path("test_path"), need_answers=False)

    def vocabulary(self) -> list[str]:
        """The words of the training file, each once."""
        words: dict[str, None] = {}
        for problem in iter_problems(self.path("train_path")):
            for text in (problem.question, *problem.steps, problem.answer):
                words |= dict.fromkeys(text.split(" "))
        return list(words)

    def path(self, key: str) -> Path:
        """The file under a key of ``data`` (``check_file``)."""
        return Path(check_file(self._data, key))


def training_file(source: "Source") -> Path | None:
    """The file that holds all training problems as they are, where there is one."""
    return source.path("train_path") if isinstance(source, FileSource) else None


def check_splits(
    data: DataConfig,
    trained: Set[int],
    valid: Sequence[Problem],
    hash_question: Callable[[str], int],
    notify: Callable[[str], None],
) -> None:
    """Refuses a test file that holds the validation questions; ``notify`` gets a line about questions in two files.

    Args:
        data: names the files; a test file that is not there yet is not looked at.
        trained: hashes of the training questions.
        valid: validation problems.
        hash_question: of a question's text.
        notify: takes the line.

    Raises:
        DataError: selecting checkpoints on the test questions would make their score worthless.
    """
    there = data.test_path is not None and Path(data.test_path).is_file()
    splits = {"training": trained, "validation": {hash_question(problem.question) for problem in valid}}
    if there:
        assert data.test_path is not None
        splits["test"] = {hash_question(problem.question) for problem in iter_problems(data.test_path)}
        if splits["test"] == splits["validation"]:
            raise DataError(
                f"data.val_path={data.val_path} and data.test_path={data.test_path} hold the same questions; the best "
                "checkpoint is chosen on the validation problems, so set another data.test_path (or null)"
            )
    for one, other in combinations(splits, 2):
        shared = len(splits[one] & splits[other])
        if shared:
            notify(f"warning: {shared:,} of {len(splits[other]):,} {other} questions are {one} questions too")


def check_file(data: DataConfig, key: str) -> str:
    """The path under a key of ``data``.

    Raises:
        DataError: it is null or not there; names the command that makes it where one is known.
    """
    path = getattr(data, key)
    if path is None:
        raise DataError(f"data.{key}: found null, expected a file of problems; set data.{key}=FILE")
    if not Path(path).is_file():
        made_by = f"; make it with: {data.made_by}" if data.made_by else f"; set data.{key}=FILE"
        raise DataError(f"data.{key}={path}: no such file{made_by}")
    return str(path)


class DebugSource:
    """A source cut to the sizes of ``run.debug``."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def train(self, epoch: int) -> list[Problem]:
        """At most 5,000 problems."""
        return self._source.train(epoch)[:DEBUG_TRAIN]

    def valid(self) -> list[Problem]:
        """At most 32 problems."""
        return self._source.valid()[:DEBUG_VALID]

    def test(self) -> list[Problem]:
        """At most 32 problems."""
        return self._source.test()[:DEBUG_VALID]

    def vocabulary(self) -> list[str]:
        """The whole source's words."""
        return self._source.vocabulary()


def open_source(data: DataConfig, seed: int, debug: bool = False) -> Source:
    """The source that ``data`` describes.

    Raises:
        DataError: a file is missing, or a generator cannot give what was asked for.
    """
    module, name = SOURCES[data.kind].split(":")
    source: Source = getattr(import_module(module), name).from_config(data, seed)
    return DebugSource(source) if debug else source
