"""Writes ProntoQA files: ``python preprocessing/prontoqa.py [RAW.json] [--out data] [--seed 0]``.

Reads `5hop_0shot_random.json` as ProntoQA's `run_experiment.py` writes it: for each example question, query,
chain_of_thought and answer. Makes prontoqa_train.json, prontoqa_valid.json and prontoqa_test.json: 9,000, 200 and 800
problems, or 90, 2 and 8 % where there are fewer than 10,000 examples. A problem asks question and query; its steps are
the sentences of the chain in pairs. The chain begins with the fact it starts from and each hop adds a rule and a
conclusion, so a pair is a known fact and the next rule, and the last sentence, the conclusion asked for, is a step of
its own: 11 sentences are 6 steps. `as_example` gives the example back. Memory: the raw file, or all problems.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file: the checkout takes the place of this folder, whose file names are no modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from coconut_ds.data.problem import Problem
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError

SPLITS = ("train", "valid", "test")
SIZES = (9000, 200, 800)
ASKS = "True or false: "
# One full stop, at its end: what parts the sentences of a step again.
SENTENCE = re.compile(r"[^.]+\.")
KEYS = {"question", "query", "chain_of_thought", "answer"}


def load_examples(path: Path) -> dict[str, Any]:
    """The raw file: examples by key, unchecked.

    Raises:
        DataError: the file is missing, is no JSON object, is empty, or holds a key twice.
    """

    def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: key '{twice}' stands twice in one object, expected it once")
        return found

    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with ProntoQA's run_experiment.py (5 hops, 0 shots, random)")
    try:
        examples = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=refuse_twins)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not isinstance(examples, dict) or not examples:
        raise DataError(f"{path}: found {_shown(examples)}, expected an object of examples with at least one")
    return examples


def as_problem(example: Any, where: str) -> Problem:
    """The problem of one raw example.

    Raises:
        DataError: the example has another shape, or one that `as_example` could not give back; ``where`` names it.
    """
    _check_shape(example, where)
    test = example["test_example"]
    chain = test["chain_of_thought"]
    steps = tuple(" ".join(chain[first : first + 2]) for first in range(0, len(chain), 2))
    problem = Problem(f"{test['question']} {test['query']}", steps, test["answer"])
    assert as_example(problem) == example
    return problem


def as_example(problem: Problem) -> dict[str, Any]:
    """The raw example that `as_problem` made the problem from."""
    question, _, asked = problem.question.rpartition(f" {ASKS}")
    chain = [sentence for step in problem.steps for sentence in re.split(r"(?<=\.) ", step)]
    test = {"question": question, "query": ASKS + asked, "chain_of_thought": chain, "answer": problem.answer}
    return {"test_example": test}


def split_sizes(count: int) -> dict[str, int]:
    """Problems of each split: those of the paper, where they suffice (more are left over), or their proportions.

    Raises:
        DataError: there are fewer examples than splits.
    """
    if count < len(SPLITS):
        raise DataError(f"found {count} examples, expected at least {len(SPLITS)}, one for each split")
    if count >= sum(SIZES):
        return dict(zip(SPLITS, SIZES, strict=True))
    valid, test = (max(1, round(count * size / sum(SIZES))) for size in SIZES[1:])
    return {"train": count - valid - test, "valid": valid, "test": test}


def convert(raw: Path, out: Path, seed: int) -> str:
    """Writes the three files and their manifest; returns a summary of them."""
    examples = load_examples(raw)
    sizes = split_sizes(len(examples))
    # Each example is let go as its problem comes, so that input and output never lie in memory together.
    keys = tqdm(list(examples), unit=" problems", disable=not sys.stderr.isatty())
    problems = [as_problem(examples.pop(key), f"{raw}: example '{key}'") for key in keys]
    random.Random(seed).shuffle(problems)
    splits, start = {}, 0
    for split, size in sizes.items():
        splits[split] = problems[start : start + size]
        start += size
    with Outputs(out, "prontoqa", seed=seed) as outputs:
        for split, chosen in splits.items():
            file = outputs.open(f"prontoqa_{split}.json", [raw])
            for problem in chosen:
                file.write(problem)
    return "\n".join([outputs.summary(), _repeats(splits), f"examples left over: {len(problems) - start}"])


def _repeats(splits: dict[str, list[Problem]]) -> str:
    first: dict[str, str] = {}  # question to the split that asks it first
    repeats = across = 0
    for split, problems in splits.items():
        for problem in problems:
            repeats += problem.question in first
            across += first.setdefault(problem.question, split) != split
    return f"problems that ask the question of an earlier one: {repeats}, of them {across} in another split"


def _check_shape(example: Any, where: str) -> None:
    if not isinstance(example, dict) or set(example) != {"test_example"}:
        raise DataError(f"{where}: found {_shown(example)}, expected an object with the key test_example alone")
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
    """What was found; of an object its keys, for its values may be long."""
    if isinstance(found, dict) and found:
        return f"the keys {', '.join(found)}"
    text = json.dumps(found, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Make problem files from a raw ProntoQA file.")
    raw = Path("data/5hop_0shot_random.json")
    parser.add_argument("raw", type=Path, nargs="?", default=raw, help="file of ProntoQA's generator (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle: same seed, same files (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.raw, options.out, options.seed))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
