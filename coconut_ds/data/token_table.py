"""Tokenized problems in a file that is written once, memory-mapped, and shared by all processes of a machine.

The file has the Arrow IPC format, with one row per problem. ``pieces`` is [question, step, ..., answer], each a list of
token ids; ``question_hash`` identifies questions that occur in two files. The cue, which all problems share, is in the
metadata of the file. The name of a table is a hash of everything that determines its content, so a table is never
outdated, and it gets this name only when it is complete. ``tokens`` converts problems to ids.

Each record batch has the SHA-256 of each of its arrays. They are checked when a table is opened, once in a launch, so
that a bit that flipped on the disk is found before training starts: about a second per gigabyte and core. A table that
fails is made again.
"""

import gc
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

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
from coconut_ds.data.tokens import format_identity, tokenize, tokenizer_identity
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.formats import TEXT, Format
from coconut_ds.methods.base import TokenizedProblem

VERSION = 3
"""Increase this when the code can no longer read older tables, or reads other problems in the same file."""
CHUNK = 8192
"""Number of problems that are tokenized together and form one record batch."""
SCHEMA = pa.schema([("pieces", pa.list_(pa.list_(pa.int32()))), ("question_hash", pa.uint64())])
ROWS, CUE = b"rows", b"cue"
"""Keys of the file's metadata: the number of problems of the complete table, and the common cue as JSON."""
PROBE = Problem("a 1\n", ("b 2", ""), "c")
"""An arbitrary problem. Its tokens show the common cue, and whether tokenization has changed."""

HASHED = ("rows", "pieces", "ids", "question hashes")
"""The arrays of a record batch, as keys of their hashes and in messages."""

Encode = Callable[[Sequence[Problem]], list[TokenizedProblem]]
Excused = Callable[[], AbstractContextManager[None]]


class TokenTable(ProblemArrays):
    """The problems of a table file, read-only. Ids are memory-mapped: a problem is read only when it is accessed."""

    def __init__(self, path: Path) -> None:
        """Maps the file.

        Raises:
            OSError, ValueError, KeyError, pyarrow.ArrowException: the file is missing, incomplete or damaged.
        """
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(SCHEMA):
            raise pa.ArrowInvalid("has other columns")
        read = [reader.get_batch_with_custom_metadata(number) for number in range(reader.num_record_batches)]
        for batch, _ in read:
            batch.validate(full=True)
        self._hashes = [batch.column("question_hash").to_numpy() for batch, _ in read]
        metadata = reader.schema.metadata or {}
        super().__init__([_mapped(batch.column("pieces")) for batch, _ in read], json.loads(metadata[CUE]))
        if metadata.get(ROWS) != str(len(self)).encode():
            raise pa.ArrowInvalid(f"has {len(self)} problems, expected {metadata.get(ROWS)!r}")
        # hashlib and NumPy let other threads run while they read an array.
        with ThreadPoolExecutor(_num_cores()) as pool:
            stored = [custom or {} for _, custom in read]
            ids = list(pool.map(partial(self._checked, metadata), range(len(read)), stored))
        self.smallest_id = min((low for low, _ in ids), default=0)
        """The smallest token id of all problems; 0 if there are none."""
        self.largest_id = max((high for _, high in ids), default=0)
        """The largest token id of all problems; 0 if there are none."""

    def _checked(self, metadata: Mapping[bytes, bytes], number: int, stored: Mapping[bytes, bytes]) -> tuple[int, int]:
        """Compares the hashes of a record batch with the stored ones. Returns its smallest and its largest id."""
        part = self._parts[number]
        for name, found in _hashes_of(metadata, number, (*part, self._hashes[number])).items():
            if stored.get(name.encode()) != found.encode():
                first = self._starts[number]
                raise ValueError(
                    f"the {name} of problems {first:,} to {first + len(part.rows) - 2:,} are not those that were "
                    "written (their SHA-256 differs)"
                )
        return (int(part.ids.min()), int(part.ids.max())) if len(part.ids) else (0, 0)

    @cached_property
    def question_hashes(self) -> NDArray[np.uint64]:
        """``hash_question`` of every question."""
        return np.concatenate(self._hashes)


def _num_cores() -> int:
    # macOS and Windows only say how many cores there are.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    excused: Excused = nullcontext,
) -> TokenTable:
    """The tokenized problems of a file, from a table in the folder ``cache``; creates the table the first time.

    If several processes call this at the same time, one tokenizes and the others wait.

    Args:
        path: file of problems.
        tokenizer: see ``tokens``.
        cache: folder of tables; ``~`` is expanded.
        format: the format of the data.
        notify: receives a line when this process tokenizes (unless the terminal shows a progress bar) or waits, and a
            warning if a table is damaged.
        chunk: number of problems to tokenize together.
        excused: makes the context in which this process waits for another one that tokenizes.

    Raises:
        DataError: the file cannot be read or contains an invalid item, or the tokenizer gives ids beyond its
            vocabulary.
        ConfigError: the table does not exist yet and ``cache`` cannot be written.
    """
    digest = file_digest(path)
    cache = Path(cache).expanduser()
    target = cache / f"{_key(digest, tokenizer, format)}.arrow"
    table, _ = _open_whole(target, tokenizer)
    if table is not None:
        return table
    try:
        cache.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for the process that tokenizes {path}"
        with _locked(target.with_suffix(".lock"), notify, waiting, excused):
            table, fault = _open_whole(target, tokenizer)
            if table is None:
                encode = partial(tokenize, tokenizer, format=format)
                _build(path, digest, encode, target, notify, chunk, fault)
                table, fault = _open_whole(target, tokenizer)
            if table is None:
                raise DataError(f"data.cache_path={cache}: the tokens of {path} cannot be used: {fault}")
            return table
    except (OSError, NotImplementedError) as error:  # the latter if the file system has no locks
        raise ConfigError(
            f"data.cache_path={cache}: cannot be written ({error}); set data.cache_path to a writable folder"
        ) from error


def _open_whole(path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenTable | None, str | None]:
    """The table, or what is wrong with its file; neither if there is no file."""
    try:
        table = TokenTable(path)
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # what Arrow raises for a damaged file
        return None, f"is damaged: {' '.join(str(error).split())[:200]}"
    if table.smallest_id >= 0 and (table.largest_id < len(tokenizer) or table.largest_id <= _last_id(tokenizer)):
        return table, None
    wrong = table.smallest_id if table.smallest_id < 0 else table.largest_id
    return None, f"holds the token id {wrong:,}, expected 0 to {_last_id(tokenizer):,}"


def _last_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id of a tokenizer. Its vocabulary may have gaps, so it can be larger than the number of tokens."""
    return max(tokenizer.get_vocab().values())


def _key(digest: str, tokenizer: PreTrainedTokenizerBase, format: Format) -> str:
    """The name of a table: a hash of everything that determines its ids."""
    # The tokens of the probe change the name when ``tokens`` changes, even if VERSION was not increased. Tokenize it
    # before reading the backend's state: this removes truncation and padding that earlier calls may have left there.
    probe = asdict(tokenize(tokenizer, [PROBE], format)[0])
    *names, state = tokenizer_identity(tokenizer)
    # Slow tokenizers are code of transformers. The two constants are part of the names of tables that exist.
    state |= {"truncation": None, "padding": None} if tokenizer.is_fast else {"version": transformers.__version__}
    parts = [(VERSION, tokenizers.__version__, digest, format_identity(tokenizer, format), probe), (*names, state)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _locked(path: Path, notify: Callable[[str], None], waiting: str, excused: Excused) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(waiting)
        with excused():
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
    fault: str | None,
) -> None:
    """Writes the table under a temporary name and renames it when it is complete.

    ``fault`` says what is wrong with the table that there is; None if there is none.
    """
    # The lock excludes other processes of this machine, but perhaps not those of others on a shared file system.
    part = target.with_suffix(f".{platform.node()}.part")
    try:
        with _no_collection():
            problems = iter_problems(path)
            if fault is not None:
                notify(f"warning: {target} {fault}; tokenizing {length_hint(problems):,} problems of {path} again")
            elif not sys.stderr.isatty():
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
            number = 0
            while some := list(islice(problems, chunk)):
                writer.write_batch(*_record_batch(some, encode(some), schema.metadata, number))
                bar.update(len(some))
                number += 1
        file.flush()
        os.fsync(file.fileno())


def _record_batch(
    problems: Sequence[Problem], tokens: Sequence[TokenizedProblem], metadata: Mapping[bytes, bytes], number: int
) -> tuple[pa.RecordBatch, dict[str, str]]:
    """A record batch, and the hashes that are stored with it."""
    arrays = arrays_of(tokens)
    hashes = np.array([hash_question(each.question) for each in problems], np.uint64)
    rows, pieces, ids = map(pa.array, arrays)
    nested = pa.ListArray.from_arrays(rows, pa.ListArray.from_arrays(pieces, ids))
    batch = pa.record_batch([nested, pa.array(hashes)], schema=SCHEMA)
    return batch, _hashes_of(metadata, number, (*arrays, hashes))


def _hashes_of(metadata: Mapping[bytes, bytes], number: int, arrays: Sequence[NDArray[Any]]) -> dict[str, str]:
    """The SHA-256 of each array of a record batch, with the place of the batch and what all batches share."""
    start = json.dumps([metadata[ROWS].decode(), metadata[CUE].decode(), number]).encode()
    found = {}
    for name, array in zip(HASHED, arrays, strict=True):
        digest = hashlib.sha256(start)
        digest.update(np.ascontiguousarray(array).data)
        found[name] = digest.hexdigest()
    return found


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
