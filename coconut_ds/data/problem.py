"""Problems (question, reasoning steps, answer), and reading them from files.

File format: a JSON list of ``{"question": str, "steps": [str, ...], "answer": str}``, or JSON Lines of the same
objects. Other keys are kept in ``Problem.extra`` (graph data stores its edges there) and are not interpreted here.
Nothing is skipped: the first invalid item raises an error that names file, index and key, what was found and what was
expected.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coconut_ds.errors import DataError
from coconut_ds.files import not_downloaded

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can contain a lone surrogate; it is not a character, and tokenizers fail on it."""
REQUIRED_KEYS = ("question", "steps", "answer")


@dataclass(frozen=True)
class Problem:
    """One problem as text."""

    question: str
    steps: tuple[str, ...]
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Other keys of the file; ignored in comparisons."""
    has_answer: bool = True
    """Whether steps and answer are known; otherwise both are empty."""

    def as_dict(self) -> dict[str, Any]:
        """The problem in the file format, including extra keys."""
        solution = {"steps": list(self.steps), "answer": self.answer} if self.has_answer else {}
        return {"question": self.question, **solution, **self.extra}


def load_problems(path: str | Path, need_answers: bool = True) -> list[Problem]:
    """Reads a JSON or JSON Lines file of problems.

    Args:
        path: the file.
        need_answers: refuse problems without steps or without an answer.

    Raises:
        DataError: the file is missing, not valid JSON or empty, or an item is invalid.
    """
    return list(iter_problems(path, need_answers))


def iter_problems(path: str | Path, need_answers: bool = True) -> Iterator[Problem]:
    """Iterates over the problems of a file, for callers that do not need all of them in memory.

    ``operator.length_hint`` of the result is the number of remaining problems.

    Raises:
        DataError: as ``load_problems``. An invalid item raises when it is reached, anything else at the call.
    """
    path = Path(path)
    _check_there(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    items = _parse(path, text)
    if not items:
        raise DataError(f"{path}: holds no problems; expected a JSON list with at least one")
    return _Problems(path, items, need_answers)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        DataError: the file is missing.
    """
    path = Path(path)
    _check_there(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Problems(Iterator[Problem]):
    """Converts items to problems one by one, and frees the memory of each item after its conversion."""

    def __init__(self, path: Path, items: list[Any], need_answers: bool) -> None:
        self._path, self._count, self._rest = path, len(items), items[::-1]
        self._need_answers = need_answers

    def __next__(self) -> Problem:
        if not self._rest:
            raise StopIteration
        index, item = self._count - len(self._rest), self._rest.pop()
        if self._need_answers or not isinstance(item, dict):
            return _problem(self._path, index, item)
        if "answer" in item:
            return _problem(self._path, index, {"steps": [], **item})
        return replace(_problem(self._path, index, {**item, "steps": [], "answer": ""}), has_answer=False)

    def __length_hint__(self) -> int:
        return len(self._rest)


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a JSON list of problems (question, steps, answer)")
    if fault := not_downloaded(path):
        raise DataError(f"{path}: {fault}")


def _parse(path: Path, text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: broken JSON at line {number}, column {error.colno}: {error.msg}; expected a JSON list of "
                "problems, or one problem per line"
            ) from error
    return items


def _problem(path: Path, index: int, item: Any) -> Problem:
    def refuse(what: str, found: Any, expected: str) -> DataError:
        shown = json.dumps(found, ensure_ascii=False)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return DataError(f"{path}: item {index}, {what}: found {type(found).__name__} {shown}, expected {expected}")

    if not isinstance(item, dict):
        raise refuse("the item itself", item, "an object with the keys question, steps and answer")
    for key in REQUIRED_KEYS:
        if key not in item:
            present = ", ".join(sorted(map(str, item))) or "none"
            raise DataError(f"{path}: item {index}, key '{key}': missing; found the keys {present}, expected '{key}'")
    for key in ("question", "answer"):
        if not isinstance(item[key], str):
            raise refuse(f"key '{key}'", item[key], "a string")
    if not isinstance(item["steps"], list):
        raise refuse("key 'steps'", item["steps"], "a list of strings")
    for position, step in enumerate(item["steps"]):
        if not isinstance(step, str):
            raise refuse(f"key 'steps', step {position}", step, "a string")
    for text in (item["question"], *item["steps"], item["answer"]):
        if not text.isascii() and LONE_SURROGATE.search(text):
            raise refuse(
                "its text",
                text.encode("ascii", "backslashreplace").decode(),
                "no lone surrogates (UTF-8)",
            )
    extra = {key: value for key, value in item.items() if key not in REQUIRED_KEYS}
    return Problem(item["question"], tuple(item["steps"]), item["answer"], extra)
