"""Writes ProntoQA files: ``python preprocessing/prontoqa.py [RAW.json] [--out data] [--seed 0]``.

Reads `5hop_0shot_random.json`, which ProntoQA's `run_experiment.py` writes: for each example a question, query,
chain_of_thought and answer. Writes prontoqa_train.json, prontoqa_valid.json and prontoqa_test.json with 9,000, 200 and
800 problems, or with 90, 2 and 8 % of the examples if there are fewer than 10,000. The question of a problem is the
example's question and query, and each step is a pair of sentences of the chain. The chain starts with a fact, and each
hop adds a rule and a conclusion. A pair is therefore a known fact and the next rule, and the last sentence, the
requested conclusion, is a step by itself: 11 sentences give 6 steps. `as_example` is the inverse of the conversion. The
script needs memory for the raw file or for all problems, whichever is larger. Existing files with other content are
replaced only with ``--overwrite``.
"""

import argparse
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file: put the root of the checkout on the path instead of this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.problem import Problem
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError
from coconut_ds.strict_json import JsonError, parse_loosely, printable, shown

SPLITS = ("train", "valid", "test")
SIZES = (9000, 200, 800)
ASKS = "True or false: "
# A sentence has exactly one full stop, at its end, so that a step can be split into its sentences again.
SENTENCE = re.compile(r"[^.]+\.")
KEYS = {"question", "query", "chain_of_thought", "answer"}


def load_examples(path: Path) -> dict[str, Any]:
    """Reads the raw file: the examples by key, not checked yet.

    Raises:
        DataError: the file is missing, is not a JSON object, is empty, or has a key twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with ProntoQA's run_experiment.py (5 hops, 0 shots, random)")
    try:
        examples = parse_loosely(path.read_text(encoding="utf-8-sig"), unique=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except JsonError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(examples, dict) or not examples:
        raise DataError(f"{path}: found {_shown(examples)}, expected an object of examples with at least one")
    return examples


def as_problem(example: Any, where: str) -> Problem:
    """The problem of one raw example.

    Raises:
        DataError: the example has another structure, or cannot be recovered by `as_example`; ``where`` names it.
    """
    _check_shape(example, where)
    test = example["test_example"]
    chain = test["chain_of_thought"]
    steps = tuple(" ".join(chain[first : first + 2]) for first in range(0, len(chain), 2))
    problem = Problem(f"{test['question']} {test['query']}", steps, test["answer"])
    assert as_example(problem) == example
    return problem


def as_example(problem: Problem) -> dict[str, Any]:
    """The raw example from which `as_problem` created the problem."""
    question, _, asked = problem.question.rpartition(f" {ASKS}")
    chain = [sentence for step in problem.steps for sentence in re.split(r"(?<=\.) ", step)]
    test = {"question": question, "query": ASKS + asked, "chain_of_thought": chain, "answer": problem.answer}
    return {"test_example": test}


def split_sizes(count: int) -> dict[str, int]:
    """The number of problems of each split: the paper's if there are enough examples, otherwise the same proportions.

    Raises:
        DataError: there are fewer examples than splits.
    """
    if count < len(SPLITS):
        raise DataError(f"found {count} examples, expected at least {len(SPLITS)}, one for each split")
    if count >= sum(SIZES):
        return dict(zip(SPLITS, SIZES, strict=True))
    valid, test = (max(1, round(count * size / sum(SIZES))) for size in SIZES[1:])
    return {"train": count - valid - test, "valid": valid, "test": test}


def convert(raw: Path, out: Path, seed: int, overwrite: bool = False) -> str:
    """Writes the three files and their manifest. Returns a summary of the files."""
    examples = load_examples(raw)
    sizes = split_sizes(len(examples))
    # Each example is freed after its conversion, so that input and output are never in memory at the same time.
    keys = tqdm(list(examples), unit=" problems", disable=not sys.stderr.isatty())
    problems = [as_problem(examples.pop(key), f"{raw}: example '{key}'") for key in keys]
    random.Random(seed).shuffle(problems)
    splits, start = {}, 0
    for split, size in sizes.items():
        splits[split] = problems[start : start + size]
        start += size
    with Outputs(out, "prontoqa", overwrite, seed=seed) as outputs:
        for split, chosen in splits.items():
            file = outputs.open(f"prontoqa_{split}.json", [raw])
            for problem in chosen:
                file.write(problem)
    return "\n".join([outputs.summary(), _repeats(splits), f"examples left over: {len(problems) - start}"])


def _repeats(splits: dict[str, list[Problem]]) -> str:
    first: dict[str, str] = {}  # each question, and the first split that contains it
    repeats = across = 0
    for split, problems in splits.items():
        for problem in problems:
            repeats += problem.question in first
            across += first.setdefault(problem.question, split) != split
    return f"problems that ask the question of an earlier one: {repeats}, of them {across} in another split"


def _check_shape(example: Any, where: str) -> None:
    if not isinstance(example, dict) or set(example) != {"test_example"}:
        raise DataError(f"{where}: found {_shown(example)}, expected an object with only the key test_example")
    test = example["test_example"]
    if not isinstance(test, dict) or set(test) != KEYS:
        raise DataError(f"{where}: found {_shown(test)}, expected an object with the keys {', '.join(sorted(KEYS))}")

    def refuse(what: str, found: Any, expected: str) -> DataError:
        return DataError(f"{where}, {what}: found {_shown(found)}, expected {expected}")

    if not isinstance(test["question"], str) or not test["question"]:
        raise refuse("key 'question'", test["question"], "text")
    if not isinstance(test["query"], str) or test["query"].rpartition(ASKS)[:2] != ("", ASKS):
        raise refuse("key 'query'", test["query"], f"text that begins '{ASKS}'")
    if test["answer"] not in ("True", "False"):
        raise refuse("key 'answer'", test["answer"], '"True" or "False"')
    chain = test["chain_of_thought"]
    if not isinstance(chain, list) or not chain:
        raise refuse("key 'chain_of_thought'", chain, "a list of sentences")
    for position, sentence in enumerate(chain):
        if not isinstance(sentence, str) or not SENTENCE.fullmatch(sentence):
            raise refuse(f"key 'chain_of_thought', sentence {position}", sentence, "text with a full stop at its end")


def _shown(found: Any) -> str:
    """What was found, for error messages; of an object only the keys, because its values may be long."""
    if isinstance(found, dict) and found:
        return printable(f"the keys {', '.join(found)}")
    return shown(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    parser = argparse.ArgumentParser(description="Write problem files from a raw ProntoQA file.")
    raw = Path("data/5hop_0shot_random.json")
    parser.add_argument(
        "raw", type=Path, nargs="?", default=raw, help="file written by ProntoQA's generator (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="output folder (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the shuffle; the same seed gives the same files (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files with other content")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.raw, options.out, options.seed, options.overwrite))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
