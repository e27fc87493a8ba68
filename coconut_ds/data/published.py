"""Reads the rows of a published benchmark: from the hub, from a copy of it, or from local files in the same format."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from coconut_ds.data.benchmarks import Benchmark, RepositoryFile
from coconut_ds.data.convert_files import read_items
from coconut_ds.errors import DataError
from coconut_ds.packages import needs

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""Kinds of local files, by preference."""


def local_rows(benchmark: Benchmark, place: Path) -> tuple[dict[str, list[Any]], list[Path]]:
    """The rows of each published split, and the files that they were read from.

    Args:
        benchmark: its splits are read.
        place: a file, if the benchmark is made from one split; or a folder with files that are named after the splits,
            such as ``test.jsonl`` or ``data/train-00000-of-00001.parquet``.

    Raises:
        DataError: there is no such file or folder, or it lacks a split.
    """
    splits = benchmark.splits
    if place.is_file():
        if len(splits) > 1:
            raise DataError(
                f"{benchmark.name}={place}: is one file, but {benchmark.name} is made from the splits "
                f"{' and '.join(splits)}; expected a folder with a file for each, such as {splits[0]}.json"
            )
        files = {splits[0]: [place]}
    elif place.is_dir():
        files = {split: _files_of(benchmark, place, split) for split in splits}
    else:
        raise DataError(f"{benchmark.name}={place}: no such file or folder")
    rows = {split: [row for path in paths for row in read_items(path)] for split, paths in files.items()}
    return rows, [path for paths in files.values() for path in paths]


def _files_of(benchmark: Benchmark, folder: Path, split: str) -> list[Path]:
    """The files of a split. Copies of a data set may hold it in several formats; one of them is chosen."""
    named = re.compile(rf"(?:.*[-_.])?{re.escape(split)}(?:[-_.].*)?")
    for place in (folder / "data", folder):
        for suffix in SUFFIXES:
            found = sorted(path for path in place.glob(f"*{suffix}") if named.fullmatch(path.name))
            if found:
                return found
    alone = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if len(alone) == 1 and len(benchmark.splits) == 1:
        return alone
    names = ", ".join(path.name for path in alone) or "no file of a kind that can be read"
    raise DataError(
        f"{benchmark.name}={folder}: has no file of the split {split}; found {names}, expected {split}.json"
    )


def hub_rows(benchmark: Benchmark, mirror: Path | None = None) -> dict[str, list[Any]]:
    """The rows of each published split, through the library ``datasets``.

    Args:
        benchmark: its splits are read.
        mirror: a folder that holds a copy of each source under its own name, such as ``ChilleD/SVAMP``; None: the hub
            and GitHub, or what the library has downloaded before.

    Raises:
        ModelError: the library is missing.
        DataError: the benchmark cannot be read, or has no such split.
    """
    source = benchmark.source
    if isinstance(source, RepositoryFile):
        address = source.address if mirror is None else str(mirror / source.repository / source.path)
        return {split: _load(benchmark, split, "json", data_files={split: address}) for split in benchmark.splits}
    if mirror is not None:
        return {split: _load(benchmark, split, str(mirror / source.name)) for split in benchmark.splits}
    with _offline_if_unreachable():
        return {split: _load(benchmark, split, source.name, revision=source.revision) for split in benchmark.splits}


def at_revision(benchmark: Benchmark, revision: str | None) -> Benchmark:
    """The benchmark at a commit of its source; unchanged if there is none."""
    return benchmark if revision is None else replace(benchmark, source=replace(benchmark.source, revision=revision))


def _load(benchmark: Benchmark, split: str, name: str, **options: Any) -> list[Any]:
    with needs("hub"):
        import datasets
    with _named(benchmark, split, datasets.exceptions.DatasetsError):
        rows: Sequence[Any] = datasets.load_dataset(name, split=split, **options).to_list()
    return list(rows)


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Where the hub cannot be reached, its client only looks at earlier downloads; it would try for half a minute."""
    with needs("hub"):
        import datasets
    from huggingface_hub import constants

    from coconut_ds.hub import hub_reachable

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not hub_reachable():
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextmanager
def _named(benchmark: Benchmark, split: str, raised: type[Exception]) -> Iterator[None]:
    """Turns what the library raises into errors that name the benchmark and what to do."""
    # Imported here: it takes a quarter of a second, and local files need no hub.
    from coconut_ds.hub import first_line

    try:
        yield
    except (OSError, ValueError, RuntimeError, raised) as error:
        raise DataError(
            f"{benchmark.name}: the split {split} of {benchmark.source} cannot be read ({first_line(error)}); without "
            f"a network, copy it here and write {benchmark.name}=PATH, or --mirror FOLDER for several"
        ) from error
