"""Data sources: objects that give the problems of the training, validation and test split.

To add a source, write one file in this package with a class that has the functions of ``Source`` and a class method
``from_config``; add one line to ``SOURCES`` in ``coconut_ds/settings/data.py``; and add one YAML file to
``config/data``.
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
from coconut_ds.settings.data_schedule import phases_of

DEBUG_TRAIN, DEBUG_VALID = 5000, 32
"""Maximum numbers of problems per split under ``run.debug``."""


class Source(Protocol):
    """The problems of three splits.

    Training problems may differ between epochs; validation and test problems never change. The class of a source also
    has ``from_config(data, seed)``, which creates it from the group ``data``.
    """

    def train(self, epoch: int) -> list[Problem]:
        """The training problems of an epoch, counted from 0."""

    def valid(self) -> list[Problem]:
        """The validation problems."""

    def test(self) -> list[Problem]:
        """The test problems."""

    def vocabulary(self) -> list[str]:
        """Texts that together contain every word that the tokenizer must know."""


class Vocabulary(Protocol):
    """What a tokenizer of the words of the data is built from. Every ``Source`` is one."""

    def vocabulary(self) -> list[str]:
        """Texts that together contain every word that the tokenizer must know."""


class FileSource:
    """Problems from files. A file is read when its problems are requested."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes; the seed has no effect."""
        return cls(data)

    def train(self, epoch: int) -> list[Problem]:
        """The problems of the training file, in every epoch."""
        return load_problems(self.path("train_path"))

    def valid(self) -> list[Problem]:
        """The problems of the validation file."""
        return load_problems(self.path("val_path"))

    def test(self) -> list[Problem]:
        """The problems of the test file. Answers may be missing; texts are then generated but not scored."""
        return load_problems(self.path("test_path"), need_answers=False)

    def vocabulary(self) -> list[str]:
        """The words of the training file, each once."""
        words: dict[str, None] = {}
        for problem in iter_problems(self.path("train_path")):
            for text in (problem.question, *problem.steps, problem.answer):
                words |= dict.fromkeys(text.split(" "))
        return list(words)

    def path(self, key: str) -> Path:
        """The file that a key of ``data`` names; raises as ``check_file``."""
        return Path(check_file(self._data, key))


def training_file(source: "Source") -> Path | None:
    """The file that contains exactly the training problems; None for other sources."""
    return source.path("train_path") if isinstance(source, FileSource) else None


def check_splits(
    data: DataConfig,
    trained: Set[int],
    valid: Sequence[Problem],
    hash_question: Callable[[str], int],
    notify: Callable[[str], None],
) -> None:
    """Refuses a test file with the same questions as the validation file; warns about questions in two splits.

    Args:
        data: names the files. A test file that does not exist yet is ignored.
        trained: hashes of the training questions.
        valid: the validation problems.
        hash_question: hashes the text of a question.
        notify: receives a warning for each pair of splits that share questions.

    Raises:
        DataError: validation and test questions are the same. The checkpoint is chosen on the validation questions, so
            its score on the test questions would be too optimistic.
    """
    test_exists = data.test_path is not None and Path(data.test_path).is_file()
    splits = {"training": trained, "validation": {hash_question(problem.question) for problem in valid}}
    if test_exists:
        assert data.test_path is not None
        splits["test"] = {
            hash_question(problem.question) for problem in iter_problems(data.test_path, need_answers=False)
        }
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
    """The path that a key of ``data`` names.

    Raises:
        DataError: the path is null or no file; names the command that creates the file (``made_by``) if it is known.
    """
    path = getattr(data, key)
    if path is None:
        raise DataError(f"data.{key}: found null, expected a file of problems; set data.{key}=FILE")
    if not Path(path).is_file():
        made_by = f"; make it with: {data.made_by}" if data.made_by else f"; set data.{key}=FILE"
        raise DataError(f"data.{key}={path}: no such file{made_by}")
    return str(path)


class DebugSource:
    """A source reduced to the first problems, for ``run.debug``."""

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
        """The texts of the complete source."""
        return self._source.vocabulary()


class Words:
    """The words of several sources, the last of which is the run's own."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def vocabulary(self) -> list[str]:
        """The texts of all sources. Those of the run's own come first, so that its words have the same token ids."""
        *earlier, own = self._sources
        return [text for one in (own, *earlier) for text in one.vocabulary()]


def open_sources(data: DataConfig, seed: int, debug: bool = False) -> list[Source]:
    """The sources of a run: those of ``data.schedule`` in order, and last that of ``data`` itself.

    Raises:
        DataError: a generator cannot create the requested problems.
    """
    sources = []
    for index, phase in enumerate(phases_of(data)):
        try:
            sources.append(open_source(phase.data, seed, debug))
        except DataError as error:
            raise DataError(f"data.schedule[{index}]: {error}") from error
    return [*sources, open_source(data, seed, debug)]


def open_source(data: DataConfig, seed: int, debug: bool = False) -> Source:
    """The source that ``data`` describes.

    Raises:
        DataError: a generator cannot create the requested problems.
    """
    module, name = SOURCES[data.kind].split(":")
    source: Source = getattr(import_module(module), name).from_config(data, seed)
    return DebugSource(source) if debug else source
