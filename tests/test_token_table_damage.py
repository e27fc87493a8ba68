"""A token table that is damaged, or was written wrongly, is noticed and made again."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from making_tables import PROBLEMS, WORDS, swapped, write
from transformers import PreTrainedTokenizerBase

from coconut_ds.data import token_table
from coconut_ds.data.token_arrays import arrays_of
from coconut_ds.data.token_table import TokenTable, cached_tokens
from coconut_ds.data.tokens import build_word_tokenizer, tokenize
from coconut_ds.errors import DataError
from coconut_ds.formats import SYMBOLIC


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return build_word_tokenizer(WORDS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "problems.json", PROBLEMS)


def fewer_rows(whole: bytes) -> bytes:
    """A valid Arrow file without the last record batch."""
    reader, sink = pa.ipc.open_file(whole), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, reader.schema) as writer:
        for number in range(reader.num_record_batches - 1):
            writer.write_batch(reader.get_batch(number))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"no arrow at all" * 99,
        lambda whole: whole[:-1],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:200] + bytes(len(whole) - 400) + whole[-200:],
        fewer_rows,
        lambda whole: swapped(whole, [0, 2, 6, 12], [0, 2, 6, 99]),
    ],
    ids=["empty", "garbage", "one-byte-less", "half", "zeros", "a-batch-less", "wild-bounds"],
)
def test_a_damaged_table_is_made_again(
    data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, damage: Any
) -> None:
    cache = tmp_path / "cache"
    lines: list[str] = []
    cached_tokens(data, tokenizer, cache, chunk=3)
    (path,) = cache.glob("*.arrow")
    path.write_bytes(damage(path.read_bytes()))
    assert list(cached_tokens(data, tokenizer, cache, notify=lines.append)) == tokenize(tokenizer, PROBLEMS)
    assert len(lines) == 1
    assert list(TokenTable(path)) == tokenize(tokenizer, PROBLEMS)


def test_any_flipped_bit_is_found_and_the_table_made_again(
    data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """In ids, bounds, hashes of questions or the common cue; padding of the file holds nothing that could change."""
    cache, expected = tmp_path / "cache", tokenize(tokenizer, PROBLEMS, SYMBOLIC)
    hashes = cached_tokens(data, tokenizer, cache, SYMBOLIC, chunk=3).question_hashes.tolist()
    (path,) = cache.glob("*.arrow")
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            table = TokenTable(path)
        except (OSError, ValueError, KeyError, pa.ArrowException):
            continue
        assert list(table) == expected
        assert table.question_hashes.tolist() == hashes
    ids = np.array([token for one in expected[3:6] for token in one.question], np.int32)
    path.write_bytes(swapped(whole, list(ids[:3]), [*ids[:2], ids[2] ^ 1]))
    lines: list[str] = []
    assert list(cached_tokens(data, tokenizer, cache, SYMBOLIC, notify=lines.append)) == expected
    (line,) = lines
    assert line.startswith(f"warning: {path} is damaged: the ids of problems ")
    assert line.endswith(f"(their SHA-256 differs); tokenizing 7 problems of {data} again")


def test_ids_beyond_the_vocabulary_are_not_loaded(
    data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that was written wrongly has hashes that agree; a tokenizer that is wrong each time is refused."""
    cache = tmp_path / "cache"
    for wrong in (-1, len(tokenizer)):
        with monkeypatch.context() as patch:
            patch.setattr(
                token_table,
                "arrays_of",
                lambda tokens, wrong=wrong: (made := arrays_of(tokens))._replace(ids=np.full_like(made.ids, wrong)),
            )
            said = rf"cannot be used: holds the token id {wrong}, expected 0 to {len(tokenizer) - 1}"
            with pytest.raises(DataError, match=said):
                cached_tokens(data, tokenizer, cache)
        lines: list[str] = []
        assert list(cached_tokens(data, tokenizer, cache, notify=lines.append)) == tokenize(tokenizer, PROBLEMS)
        assert [f"holds the token id {wrong}" in line for line in lines] == [True]
        for path in cache.glob("*.arrow"):
            path.unlink()
