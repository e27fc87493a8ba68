"""Encodes prompts on several threads beside calls that read special tokens in texts, and compares all token ids.

    python tests/encoding_threads.py --encodings 1000000

Four threads encode prompts that spell out markers, as requests do, while two others do with the same tokenizer what
probing, the evaluation harness and a user's own function do: these turn names of special tokens into those tokens, or
call the tokenizer itself. Every prompt must become the tokens that it becomes when nothing else runs. The last line of
output is JSON; the exit code is 1 if any encoding differs.
"""

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

from serving import byte_tokenizer
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.encoding import encode, places
from coconut_ds.data.tokens import MARKERS, add_markers, encode_questions
from coconut_ds.generation.decoding import token_id
from coconut_ds.probing.graph_values import name_tokens

THREADS = 4
BATCH = 100
"""Encodings between two looks at the clock."""


def prompts() -> list[str]:
    """Prompts with and without names of markers."""
    marked = [f"{before}{marker} the cat" for marker in (*MARKERS, "<|endoftext|>") for before in ("", "a ", "é")]
    return [*marked, "the cat", "1 + 2 =", "é€😀", "Every lempus is a rompus. " * 4]


def run(num_encodings: int) -> dict[str, float]:
    """Encodes this many prompts; returns how many differ, and how many other calls were made meanwhile."""
    tokenizer = byte_tokenizer()
    add_markers(tokenizer)
    texts = prompts()
    expected = [encode_questions(tokenizer, [text])[0] for text in texts]
    done, bar, began = threading.Event(), Bar(num_encodings), time.perf_counter()

    def check() -> int:
        wrong = 0
        for number in range(num_encodings // THREADS):
            place = number % len(texts)
            wrong += encode_questions(tokenizer, [texts[place]])[0] != expected[place]
            if number % BATCH == BATCH - 1:
                bar.add(BATCH)
        return wrong

    def disturb() -> int:
        for calls in count():
            if done.is_set():
                return calls
            probe(tokenizer)
        raise AssertionError("count() never ends")

    with ThreadPoolExecutor(THREADS + 2) as pool:
        others = [pool.submit(disturb) for _ in range(2)]
        try:
            wrong = sum(pool.map(lambda _: check(), range(THREADS)))
        finally:
            done.set()
        calls = sum(other.result() for other in others)
    bar.close()
    seconds = round(time.perf_counter() - began, 1)
    return {"encodings": num_encodings // THREADS * THREADS, "wrong": wrong, "other_calls": calls, "seconds": seconds}


def probe(tokenizer: PreTrainedTokenizerBase) -> None:
    """What others do with a tokenizer while requests encode."""
    marker = MARKERS[0]
    assert token_id(tokenizer, marker) == tokenizer.convert_tokens_to_ids(marker)
    assert len(encode(tokenizer, [marker], names_are_tokens=True)[0]) == 1
    name_tokens(tokenizer, "the", "cat")
    places(tokenizer, f"{marker} the cat")
    # A function that a user runs on the model's thread. It may read other tokens while `encode` runs, and it may fail,
    # because transformers changes the tokenizer's setting; requests must not notice.
    with suppress(RuntimeError):
        tokenizer(f"{marker} the cat")
        tokenizer(f"{marker} the cat", split_special_tokens=True, truncation=True, max_length=2)


class Bar:
    """A line of progress, for people who wait."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lock = total, 0, threading.Lock()

    def add(self, count: int) -> None:
        """Counts encodings."""
        with self._lock:
            self._done += count
            if sys.stderr.isatty() and self._done % 10_000 < count:
                sys.stderr.write(f"\r{self._done:,} of {self._total:,} encodings")

    def close(self) -> None:
        """Ends the line."""
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encodings", type=int, default=1_000_000)
    result = run(parser.parse_args().encodings)
    print(json.dumps(result))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
