"""A token table equals tokenizing, is made once per input, and is made again if it is damaged."""

import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import environment, start
from making_tables import PROBLEMS, WORDS, swapped, write
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

import coconut_ds
from coconut_ds.data import token_table
from coconut_ds.data.problem import Problem, iter_problems, load_problems
from coconut_ds.data.token_table import cached_tokens, hash_question
from coconut_ds.data.tokens import add_markers, build_word_tokenizer, load_tokenizer, tokenize
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.formats import SYMBOLIC, TEXT, Format

CHECKOUT = Path(coconut_ds.__file__).parents[1]
GPT2 = CHECKOUT.parent / "shared" / "data" / "gpt2_tokenizer"


def tables(cache: Path) -> list[str]:
    """Files in a cache folder, except locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return build_word_tokenizer(WORDS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "problems.json", PROBLEMS)


WORD_LEVEL, BYTES = build_word_tokenizer(WORDS), ByT5Tokenizer(extra_ids=0)
texts = st.one_of(st.text(max_size=8), st.lists(st.sampled_from(WORDS)).map(" ".join))
problems = st.builds(Problem, texts, st.lists(texts, max_size=4).map(tuple), texts)


@settings(max_examples=40, deadline=None)
@given(
    written=st.lists(problems, min_size=1, max_size=9),
    chunk=st.integers(1, 10),
    format=st.sampled_from([TEXT, SYMBOLIC]),
    one=st.sampled_from([WORD_LEVEL, BYTES]),
)
def test_a_table_is_what_tokenizing_gives(
    written: list[Problem], chunk: int, format: Format, one: PreTrainedTokenizerBase
) -> None:
    """With no steps, empty texts, empty pieces, any letters, several record batches, a slow tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "p.json", written)
        expected = tokenize(one, load_problems(path), format)
        for _ in ("made", "opened"):
            table = cached_tokens(path, one, folder, format, chunk=chunk)
            assert list(table) == [table[index] for index in range(len(table))] == expected
            assert table.question_hashes.tolist() == [hash_question(problem.question) for problem in written]


@pytest.mark.skipif(not GPT2.is_dir(), reason="needs GPT-2's tokenizer")
def test_a_real_tokenizer_gives_the_same_ids_and_no_special_ones(tmp_path: Path) -> None:
    gpt2 = load_tokenizer(str(GPT2))
    markers, _ = add_markers(gpt2)
    spelled = "<|endoftext|><|latent|>"
    written = [
        Problem(f"Öl {spelled}\u2028日本 {number}", (f"<<{number}*2>>", spelled), "1,000") for number in range(9)
    ]
    path = write(tmp_path / "p.json", written)
    table = cached_tokens(path, gpt2, tmp_path / "cache", chunk=4)
    assert list(table) == tokenize(gpt2, written)
    found = {token for problem in table for ids in (problem.question, *problem.steps) for token in ids}
    assert not found & {gpt2.eos_token_id, *markers.all()}


def test_indices_are_those_of_a_list(data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    table, plain = cached_tokens(data, tokenizer, tmp_path, chunk=3), tokenize(tokenizer, PROBLEMS)
    for index in range(-7, 7):
        assert table[index] == table[np.int64(index)] == plain[index]
    for some in (slice(None), slice(2, -1), slice(None, None, -2), slice(5, 99), slice(3, 1)):
        assert table[some] == plain[some]
    for index in (7, -8):
        with pytest.raises(IndexError):
            table[index]
    assert all(type(token) is int for problem in table for token in (*problem.question, *problem.answer))


def test_the_file_is_mapped_and_not_read(data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A change to the open file shows in the table."""
    table, question = cached_tokens(data, tokenizer, tmp_path), list(tokenize(tokenizer, PROBLEMS)[1].question)
    (path,) = tmp_path.glob("*.arrow")
    changed = swapped(path.read_bytes(), question, question[::-1])
    with path.open("r+b") as file:
        file.write(changed)
    assert table[1].question == question[::-1] != question


def test_a_question_has_the_same_hash_everywhere() -> None:
    assert hash_question("Is Tom a bompus?") == 6116495069070909627
    assert hash_question("") != hash_question(" ")


def test_the_same_text_and_tokenizer_are_the_same_table(
    data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Whatever the name and age of the file, and whatever the tokenizer did before."""
    cache = tmp_path / "cache"
    lines: list[str] = []
    cached_tokens(data, tokenizer, cache, notify=lines.append)
    moved = data.rename(tmp_path / "other.json")
    os.utime(moved, (0, 0))
    tokenizer("Tom is a bompus", truncation=True, max_length=2)
    tokenizer.save_pretrained(tmp_path / "saved")
    for same in (tokenizer, load_tokenizer(str(tmp_path / "saved"))):
        assert list(cached_tokens(moved, same, cache, notify=lines.append)) == tokenize(tokenizer, PROBLEMS)
    assert lines == [f"tokenizing 7 problems of {data} (once)"]


def test_another_text_tokenizer_or_format_is_another_table(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def number_of_tables(one: PreTrainedTokenizerBase, path: Path = data, format: Format = TEXT) -> int:
        assert list(cached_tokens(path, one, cache, format)) == tokenize(one, load_problems(path), format)
        return len(tables(cache))

    one = build_word_tokenizer(WORDS)
    assert number_of_tables(one) == 1
    assert number_of_tables(one, format=SYMBOLIC) == 2
    assert number_of_tables(one, path=write(tmp_path / "b.json", [*PROBLEMS[:-1], Problem("Tom", (), "7")])) == 3
    assert number_of_tables(build_word_tokenizer([*WORDS, "7"])) == 4
    one.add_tokens(["bom"])
    assert number_of_tables(one) == 5
    one.eos_token = "a"
    assert number_of_tables(one) == 6
    one.backend_tokenizer.post_processor = TemplateProcessing("a $A", special_tokens=[("a", one.eos_token_id)])
    assert number_of_tables(one) == 7
    assert number_of_tables(ByT5Tokenizer(extra_ids=0)) == 8
    assert number_of_tables(ByT5Tokenizer(extra_ids=1)) == 9


def test_a_change_in_how_problems_become_ids_is_another_table(
    data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its version number was not raised."""
    first = cached_tokens(data, tokenizer, tmp_path)[0]
    monkeypatch.setattr(
        token_table, "tokenize", lambda tokenizer, problems, format: tokenize(tokenizer, problems, SYMBOLIC)
    )
    assert cached_tokens(data, tokenizer, tmp_path)[0] == tokenize(tokenizer, PROBLEMS, SYMBOLIC)[0] != first


def test_what_fails_midway_leaves_no_table(data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([*(problem.as_dict() for problem in PROBLEMS), {"question": "?"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.json: item 7, key 'steps': missing"):
        cached_tokens(bad, tokenizer, cache, chunk=2)

    def change(line: str) -> None:
        write(data, PROBLEMS[:3])

    with pytest.raises(DataError, match=r"problems\.json: changed while it was read"):
        cached_tokens(data, tokenizer, cache, notify=change)
    with pytest.raises(DataError, match=r"none\.json: no such file; expected a JSON list of problems"):
        cached_tokens(tmp_path / "none.json", tokenizer, cache)
    assert tables(cache) == []


def test_problems_come_one_by_one_and_say_how_many_are_left(data: Path) -> None:
    coming = iter_problems(data)
    assert (length_hint(coming), next(coming), length_hint(coming)) == (7, PROBLEMS[0], 6)
    assert list(coming) == PROBLEMS[1:]


def test_a_folder_that_cannot_be_written_matters_only_when_it_must_be(
    data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    cached_tokens(data, tokenizer, there)
    with pytest.raises(ConfigError) as caught:
        cached_tokens(data, tokenizer, data / "below-a-file")
    assert str(caught.value).startswith(f"data.cache_path={data}/below-a-file: cannot be written (")
    assert str(caught.value).endswith("; set data.cache_path to a writable folder")

    def refuse(*given: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(cached_tokens(data, tokenizer, there)) == 7


WORKER = f"""
import json, sys
sys.path[0] = {str(CHECKOUT)!r}
from coconut_ds.data.token_arrays import arrays_of
from coconut_ds.data.token_table import cached_tokens
from coconut_ds.data.tokens import build_word_tokenizer
_, data, cache = sys.argv
table = cached_tokens(data, build_word_tokenizer({WORDS}), cache, notify=lambda line: print(line, flush=True))
print(json.dumps([problem.question for problem in table]))
"""


@pytest.mark.slow
def test_of_two_processes_at_once_one_tokenizes(data: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    questions = [problem.question for problem in cached_tokens(data, tokenizer, cache)]
    (path,) = cache.glob("*.arrow")
    path.unlink()
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER, encoding="utf-8")
    with ExitStack() as stack:
        with FileLock(path.with_suffix(".lock")):
            started = (start([worker, data, cache], environment(), stdout=subprocess.PIPE) for _ in range(2))
            outputs = [stack.enter_context(process).stdout for process in started]
            waiting = [output.readline() for output in outputs if output is not None]
        (*first, result), (*second, same) = (output.read().splitlines() for output in outputs if output is not None)
    assert waiting == [f"waiting for the process that tokenizes {data}\n"] * 2
    assert first + second == [f"tokenizing 7 problems of {data} (once)"]
    assert json.loads(result) == json.loads(same) == questions
