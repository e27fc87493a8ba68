"""Tokenized problems in a file that is written once, memory-mapped, and shared by all processes of a machine.

The file has the Arrow IPC format, with one row per problem. ``pieces`` is [question, step, ..., answer], each a list of
token ids; ``question_hash`` identifies questions that occur in two files. The cue, which all problems share, is in the
metadata of the file. The name of a table is a hash of everything that determines its content, so a table is never
outdated, and it gets this name only when it is complete. ``tokens`` converts problems to ids.
"""

import gc
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from operator import length_hint
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.problem import Problem, file_digest, iter_problems
from coconut_ds.data.token_arrays import ProblemArrays, TokenArrays, arrays_of
from coconut_ds.data.tokens import tokenize, tokenizer_identity
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.formats import TEXT, Format
from coconut_ds.methods.base import TokenizedProblem

VERSION = 2
"""Increase this when the code can no longer read older tables, or reads other problems in the same file."""
CHUNK = 8192
"""Number of problems that are tokenized together and form one record batch."""
SCHEMA = pa.schema([("pieces", pa.list_(pa.list_(pa.int32()))), ("question_hash", pa.uint64())])
ROWS, CUE = b"rows", b"cue"
"""Keys of the file's metadata: the number of problems of the complete table, and the common cue as JSON."""
PROBE = Problem("a 1\n", ("b 2", ""), "c")
"""An arbitrary problem. Its tokens show the common cue, and whether tokenization has changed."""

Encode = Callable[[Sequence[Problem]], list[TokenizedProblem]]


class TokenTable(ProblemArrays):
    """The problems of a table file, read-only. Ids are memory-mapped: a problem is read only when it is accessed."""

    def __init__(self, path: Path) -> None:
        """Maps the file.

        Raises:
            OSError, ValueError, KeyError, pyarrow.ArrowException: the file is missing or incomplete.
        """
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(SCHEMA):
            raise pa.ArrowInvalid(f"{path}: has other columns")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        self._hashes = [batch.column("question_hash").to_numpy() for batch in batches]
        metadata = reader.schema.metadata or {}
        super().__init__([_mapped(batch.column("pieces")) for batch in batches], json.loads(metadata[CUE]))
        if metadata.get(ROWS) != str(len(self)).encode():
            raise pa.ArrowInvalid(f"{path}: has {len(self)} problems, expected {metadata.get(ROWS)!r}")

    @cached_property
    def question_hashes(self) -> NDArray[np.uint64]:
        """``hash_question`` of every question."""
        return np.concatenate(self._hashes)


def hash_question(text: str) -> int:
    """A 64-bit hash of a question's text, the same on all machines."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def cached_tokens(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    cache: str | Path,
    format: Format = TEXT,
    notify: Callable[[str], None] = lambda line: None,
    chunk: int = CHUNK,
) -> TokenTable:
    """The tokenized problems of a file, from a table in the folder ``cache``; creates the table the first time.

    If several processes call this at the same time, one tokenizes and the others wait.

    Args:
        path: file of problems.
        tokenizer: see ``tokens``.
        cache: folder of tables; ``~`` is expanded.
        format: the format of the data.
        notify: receives a line when this process tokenizes (unless the terminal shows a progress bar) or waits.
        chunk: number of problems to tokenize together.

    Raises:
        DataError: the file cannot be read or contains an invalid item.
        ConfigError: the table does not exist yet and ``cache`` cannot be written.
    """
    digest = file_digest(path)
    cache = Path(cache).expanduser()
    target = cache / f"{_key(digest, tokenizer, format)}.arrow"
    table = _open_whole(target)
    if table is not None:
        return table
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock"), notify, f"waiting for the process that tokenizes {path}"):
            table = _open_whole(target)
            if table is None:
                _build(path, digest, partial(tokenize, tokenizer, format=format), target, notify, chunk)
                table = TokenTable(target)
            return table
    except (OSError, NotImplementedError) as error:  # the latter if the file system has no locks
        raise ConfigError(
            f"data.cache_path={cache}: cannot be written ({error}); set data.cache_path to a writable folder"
        ) from error


def _open_whole(path: Path) -> TokenTable | None:
    try:
        return TokenTable(path)
    except (OSError, ValueError, KeyError, pa.ArrowException):  # what Arrow raises for a damaged file
        return None


def _key(digest: str, tokenizer: PreTrainedTokenizerBase, format: Format) -> str:
    """The name of a table: a hash of everything that determines its ids."""
    # The tokens of the probe change the name when ``tokens`` changes, even if VERSION was not increased. Tokenize it
    # before reading the backend's state: this removes truncation and padding that earlier calls may have left there.
    probe = tokenize(tokenizer, [PROBE], format)[0]
    *names, state = tokenizer_identity(tokenizer)
    # Slow tokenizers are code of transformers. The two constants are part of the names of tables that exist.
    more = {"truncation": None, "padding": None} if tokenizer.is_fast else {"version": transformers.__version__}
    parts = [(VERSION, tokenizers.__version__, digest, asdict(format), asdict(probe)), (*names, {**state, **more})]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _locked(path: Path, notify: Callable[[str], None], waiting: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    path: str | Path,
    digest: str,
    encode: Encode,
    target: Path,
    notify: Callable[[str], None],
    chunk: int,
) -> None:
    """Writes the table under a temporary name and renames it when it is complete."""
    # The lock excludes other processes of this machine, but perhaps not those of others on a shared file system.
    part = target.with_suffix(f".{platform.node()}.part")
    try:
        with _no_collection():
            problems = iter_problems(path)
            if not sys.stderr.isatty():
                notify(f"tokenizing {length_hint(problems):,} problems of {path} (once)")
            _write(part, problems, encode, chunk)
        if file_digest(path) != digest:
            raise DataError(f"{path}: changed while it was read; start again when it no longer changes")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, problems: Iterator[Problem], encode: Encode, chunk: int) -> None:
    total = length_hint(problems)
    schema = SCHEMA.with_metadata({ROWS: str(total), CUE: json.dumps(list(encode([PROBE])[0].cue))})
    bar = tqdm(total=total, desc="tokenizing", unit=" problems", unit_scale=True, disable=None, dynamic_ncols=True)
    with path.open("wb") as file, bar:
        with pa.ipc.new_file(file, schema) as writer:
            while some := list(islice(problems, chunk)):
                writer.write_batch(_record_batch(some, encode(some)))
                bar.update(len(some))
        file.flush()
        os.fsync(file.fileno())


def _record_batch(problems: Sequence[Problem], tokens: Sequence[TokenizedProblem]) -> pa.RecordBatch:
    rows, pieces, ids = map(pa.array, arrays_of(tokens))
    nested = pa.ListArray.from_arrays(rows, pa.ListArray.from_arrays(pieces, ids))
    hashes = pa.array([hash_question(each.question) for each in problems], pa.uint64())
    return pa.record_batch([nested, hashes], schema=SCHEMA)


def _mapped(pieces: pa.ListArray) -> TokenArrays:
    """The memory-mapped arrays of a record batch."""
    arrays = (pieces.offsets, pieces.values.offsets, pieces.values.values)
    return TokenArrays(*(array.to_numpy(zero_copy_only=True) for array in arrays))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disables garbage collection: searching millions of live objects, without cycles, would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
