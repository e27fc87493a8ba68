"""The registry of data sources: a name of ``data.kind`` to the problems of three splits.

A new source is one file, one line in ``SOURCES`` and one YAML in ``config/data``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from coconut_ds.data.arithmetic import ModularSum, PermutationProduct
from coconut_ds.data.layered import LayeredGraphs
from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig

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
    """Problems from files; each file is read once, when first asked for."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._read: dict[str, list[Problem]] = {}

    def train(self, epoch: int) -> list[Problem]:
        """The training file, in every epoch."""
        return self._problems("train_path")

    def valid(self) -> list[Problem]:
        """The validation file."""
        return self._problems("val_path")

    def test(self) -> list[Problem]:
        """The test file."""
        return self._problems("test_path")

    def vocabulary(self) -> list[str]:
        """All texts of the training file."""
        return [text for problem in self.train(0) for text in (problem.question, *problem.steps, problem.answer)]

    def _problems(self, key: str) -> list[Problem]:
        if key not in self._read:
            self._read[key] = load_problems(check_file(self._data, key))
        return self._read[key]


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


SOURCES: dict[str, Callable[[DataConfig, int], Source]] = {
    "file": lambda data, seed: FileSource(data),
    "modular_sum": lambda data, seed: ModularSum(seed, data.size, data.num_terms, data.online, data.modulus),
    "permutation_product": lambda data, seed: PermutationProduct(seed, data.size, data.num_terms, data.online),
    "synthetic": lambda data, seed: LayeredGraphs(
        seed, data.size.model_dump(), data.num_nodes, data.num_layers, data.num_edges, data.online
    ),
}


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
    source = SOURCES[data.kind](data, seed)
    return DebugSource(source) if debug else source
