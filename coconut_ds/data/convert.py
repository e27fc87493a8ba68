"""Converts files of problems that have other shapes: ``python -m coconut_ds.data convert FILE OUT``.

Reads JSON, JSON Lines, CSV and Parquet with one problem per item, under whatever keys, and writes the file format of
this project (``coconut_ds.data.problem``). The keys of question, steps and answer are found by their usual names, or
set with options; the mapping and the first problem are printed. Answers may be numbers. Steps may be a list, or one
text that is split into lines or calculations. In a text such as ``… #### 72`` the steps precede the mark and the
answer follows it. All other keys are kept under their names. No item is skipped: the first one that cannot be converted
is an error, and then nothing is written.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from coconut_ds.data.problem import REQUIRED_KEYS, Problem
from coconut_ds.errors import DataError
from coconut_ds.strict_json import LONE_SURROGATE, MAX_DEPTH, is_deeper, printable, shown

CONTEXTS = ("body", "context", "passage")
"""Usual names of a text that precedes the question, in lower case."""
QUESTIONS = ("question", "squestion", "problem", "query", "prompt", "instruction", "input")
STEPS = ("steps", "cot", "chain_of_thought", "rationale", "reasoning", "solution", "explanation")
ANSWERS = (
    "answer",
    "final_answer",
    "expected_answer",
    "lsolutions",
    "output",
    "response",
    "completion",
    "label",
)
MARK = "####"
CALCULATION = re.compile(r"(?:<<.*?>>|\S)+")
"""Spaces separate calculations, except within double angle brackets."""
ONLY_CALCULATIONS = re.compile(r"\s*(?:<<[^<>]*>>\s*)+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def _automatic(text: str) -> list[str]:
    if "\n" in text.strip():
        return text.split("\n")
    return CALCULATION.findall(text) if ONLY_CALCULATIONS.fullmatch(text) else [text]


SPLITS: Mapping[str, Callable[[str], Sequence[str]]] = {
    "auto": _automatic,
    "lines": lambda text: text.split("\n"),
    "sentences": SENTENCE_END.split,
    "calculations": CALCULATION.findall,
    "none": lambda text: [text],
}
"""Ways to split one text into steps. auto: into lines if there are several, into calculations if it consists of
``<<…>>``, and otherwise one step."""


@dataclass(frozen=True)
class KeyMapping:
    """Where the parts of a problem are in the items of a file."""

    question: tuple[str, ...]
    """Keys whose texts are joined with a space."""
    steps: str | None
    """None: the file has no steps, or they precede the mark in the answer."""
    answer: str | None
    """None: the file has no answers, or they follow the mark in the steps."""
    split: str = "auto"
    """A key of ``SPLITS``."""
    mark: str = MARK
    """Text between steps and answer, if both are in one text."""

    @classmethod
    def found_in(cls, items: Sequence[Any], where: str, **given: Any) -> "KeyMapping":
        """The mapping by the usual names of keys; ``given`` has the fields that the user has set.

        Raises:
            DataError: no key has the name of a question, or one that the user has set is in no item.
        """
        keys = dict.fromkeys(key for item in items if isinstance(item, dict) for key in item)
        named = [key for part in ("question", "steps", "answer") for key in _as_tuple(given.get(part))]
        for key in named:
            if key not in keys:
                raise DataError(f"{where}: no item has the key '{key}'; found the keys {_list(keys)}")
        free = [key for key in keys if key not in named]
        question = _as_tuple(given.get("question"))
        if not question:
            asked, context = _first(free, QUESTIONS), _first(free, CONTEXTS)
            if asked is None:
                raise DataError(
                    f"{where}: no key is named like a question; found the keys {_list(keys)}; set --question KEY"
                )
            question = (context, asked) if context is not None else (asked,)
        rest = [key for key in free if key not in question]
        steps: str | None = given.get("steps") or _first(rest, STEPS)
        answer: str | None = given.get("answer") or _first(rest, ANSWERS)
        return cls(question, steps, answer, given.get("split") or "auto", given.get("mark") or MARK)

    @property
    def used(self) -> tuple[str, ...]:
        """All keys of the mapping."""
        return (*self.question, *_as_tuple(self.steps), *_as_tuple(self.answer))


@dataclass
class Converter:
    """Converts items with one mapping, and counts what it changed."""

    keys: KeyMapping
    where: str
    """Name of the file, for errors."""

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.number: tuple[str, str] | None = None
        """The first answer that was a number, as found and as written."""

    def convert(self, items: Sequence[Any]) -> Iterator[Problem]:
        """The problems of the items, in order.

        Raises:
            DataError: an item cannot be converted; names it and its key.
        """
        for index, item in enumerate(items):
            yield self._problem(item, f"{self.where}: item {index}")

    def _problem(self, item: Any, where: str) -> Problem:
        _check_item(item, where)
        keys = self.keys
        for key in keys.question:
            if not isinstance(item.get(key), str):
                raise DataError(f"{where}, key '{key}': found {shown(item.get(key))}, expected the text of a question")
        steps, in_steps = self._steps(item, where)
        answer, before = self._answer(item, where)
        if in_steps is not None and answer is not None and not _same(in_steps, answer):
            raise DataError(
                f"{where}: found the answer {shown(in_steps)} after '{keys.mark}' in '{keys.steps}' and "
                f"{shown(answer)} in '{keys.answer}', expected the same"
            )
        if "".join(steps).strip() and "".join(before).strip():
            raise DataError(
                f"{where}: found steps in '{keys.steps}' and before '{keys.mark}' in '{keys.answer}', expected them "
                f"in one place; for those of '{keys.answer}' add --steps {keys.answer}"
            )
        answer = in_steps if answer is None else answer
        kept = tuple(step.strip() for step in (*steps, *before) if step.strip())
        if isinstance(item.get(keys.steps), list):
            self.counts["blank steps"] += len(steps) - len(kept)
        self.counts["without steps"] += not kept
        self.counts["without an answer"] += not (answer or "").strip()
        texts = [item[key] for key in keys.question]
        question = texts[0] if len(texts) == 1 else " ".join(text.strip() for text in texts)
        others = {_free(key): _finite(value) for key, value in item.items() if key not in keys.used}
        return Problem(question, kept, answer or "", others)

    def _steps(self, item: dict[str, Any], where: str) -> tuple[Sequence[str], str | None]:
        """The steps under their key, and the answer after the mark if there is one."""
        key = self.keys.steps
        value = None if key is None else item.get(key)
        if value is None:
            return [], None
        if isinstance(value, list):
            return [_text(one, f"{where}, key '{key}', step {number}") for number, one in enumerate(value)], None
        if not isinstance(value, str):
            raise DataError(f"{where}, key '{key}': found {shown(value)}, expected a list of steps or a text")
        before, mark, after = value.partition(self.keys.mark)
        return SPLITS[self.keys.split](before), after.strip() if mark else None

    def _answer(self, item: dict[str, Any], where: str) -> tuple[str | None, Sequence[str]]:
        """The answer, None if it is not known; and the steps that precede the mark in the same text."""
        key = self.keys.answer
        value = None if key is None else item.get(key)
        if value is None:
            return None, []
        text = _text(value, f"{where}, key '{key}'")
        if not isinstance(value, str):
            self.counts["numbers"] += 1
            self.number = self.number or (shown(value), text)
        before, mark, after = text.rpartition(self.keys.mark)
        return (after.strip(), SPLITS[self.keys.split](before)) if mark else (text, [])


def _check_item(item: Any, where: str) -> None:
    if not isinstance(item, dict):
        raise DataError(f"{where}: found {shown(item)}, expected an object")
    if is_deeper(item, MAX_DEPTH):
        raise DataError(f"{where}: nested deeper than {MAX_DEPTH} lists and objects")
    found = LONE_SURROGATE.search(json.dumps(item, ensure_ascii=False, default=str))
    if found is not None:
        raise DataError(f"{where}: contains {shown(found[0])}, expected no lone surrogates (UTF-8)")


def _text(value: Any, where: str) -> str:
    """A text or number as text: 145.0 becomes 145, and a list of one value becomes that value."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    raise DataError(f"{where}: found {shown(value)}, expected a text or a finite number")


def _same(one: str, other: str) -> bool:
    return one.replace(",", "").strip() == other.replace(",", "").strip()


def _finite(value: Any) -> Any:
    """A value with null for each number that is not finite, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _free(key: str) -> str:
    """The name under which another key is kept: the names of the required keys are taken."""
    return f"{key}_in_file" if key in REQUIRED_KEYS else key


def _first(keys: Sequence[str], names: Sequence[str]) -> str | None:
    """The key with the first of these names, in any case."""
    found = {key.lower(): key for key in reversed(keys)}
    return next((found[name] for name in names if name in found), None)


def _as_tuple(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _list(keys: Mapping[str, Any]) -> str:
    return printable(", ".join(keys)) or "none"
