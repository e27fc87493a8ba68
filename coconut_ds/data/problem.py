"""Problems (question, reasoning steps, answer), and reading them from files.

File format: a JSON list of ``{"question": str, "steps": [str, ...], "answer": str}``, or JSON Lines of the same
objects. Other keys are kept in ``Problem.extra`` (graph data stores its edges there) and are not interpreted here.
No item is skipped: the first invalid one raises an error that names file, index and key, what was found and what was
expected. Blank steps are left out and counted (``Problem.num_blank_steps``), and a blank answer counts as none.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coconut_ds.errors import DataError
from coconut_ds.files import not_downloaded
from coconut_ds.strict_json import LONE_SURROGATE, MAX_DEPTH, JsonError, is_deeper, parse_loosely, printable, shown

REQUIRED_KEYS = ("question", "steps", "answer")
OTHER_SHAPES = "to convert a file of another shape: python -m coconut_ds.data convert FILE OUT"


@dataclass(frozen=True)
class Problem:
    """One problem as text."""

    question: str
    steps: tuple[str, ...]
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Other keys of the file; ignored in comparisons."""
    has_answer: bool = True
    """Whether the answer is known. A blank answer counts as none; such a problem is answered but not scored."""
    num_blank_steps: int = field(default=0, compare=False)
    """Number of steps in the file that are empty or white space; they are not among ``steps``."""

    def __post_init__(self) -> None:
        # A blank answer is written as it was found, although it counts as none.
        object.__setattr__(self, "_is_written", self.has_answer or bool(self.steps))
        if not self.answer.strip():
            object.__setattr__(self, "has_answer", False)

    def as_dict(self) -> dict[str, Any]:
        """The problem in the file format, including extra keys."""
        is_written: bool = getattr(self, "_is_written")  # noqa: B009
        solution = {"steps": list(self.steps), "answer": self.answer} if is_written else {}
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
    items = parse_items(path, text)
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


def parse_items(path: Path, text: str) -> list[Any]:
    """The items of a JSON list or of JSON Lines, not checked yet.

    Raises:
        DataError: the text is neither; names ``path`` and the line or item.
    """
    if text.lstrip().startswith("["):
        try:
            return list(parse_loosely(text))
        except JsonError as error:
            raise DataError(f"{path}: {_item_of(text)}{error}") from error
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(parse_loosely(line, number))
        except JsonError as error:
            where = "" if f"line {number}" in str(error) else f"line {number}: "
            raise DataError(
                f"{path}: {where}{error}; expected a JSON list of problems, or one problem per line"
            ) from error
    return items


def _item_of(text: str) -> str:
    """``item 3: `` if that item of a JSON list is the first one that cannot be read; empty if the list is broken."""
    position, index = text.index("[") + 1, 0
    decoder = json.JSONDecoder()
    while True:
        while text[position : position + 1] in (" ", "\t", "\r", "\n", ","):
            position += 1
        try:
            _, end = decoder.raw_decode(text, position)
            parse_loosely(text[position:end])
        except json.JSONDecodeError:
            return ""
        except (ValueError, RecursionError):
            return f"item {index}: "
        position, index = end, index + 1


def _problem(path: Path, index: int, item: Any) -> Problem:
    where = f"{path}: item {index}"
    _check_shape(where, item)
    for text in (item["question"], *item["steps"], item["answer"]):
        if not text.isascii() and LONE_SURROGATE.search(text):
            raise _refusal(where, "its text", text, "no lone surrogates (UTF-8)")
    extra = {key: value for key, value in item.items() if key not in REQUIRED_KEYS}
    if extra and is_deeper(extra, MAX_DEPTH):
        raise DataError(f"{where}: nested deeper than {MAX_DEPTH} lists and objects")
    steps = tuple(step for step in item["steps"] if step.strip())
    num_blank = len(item["steps"]) - len(steps)
    return Problem(item["question"], steps, item["answer"], extra, num_blank_steps=num_blank)


def _check_shape(where: str, item: Any) -> None:
    """Raises a ``DataError`` unless the item has the required keys with values of the right types."""
    if not isinstance(item, dict):
        raise _refusal(where, "the item itself", item, "an object with the keys question, steps and answer")
    for key in REQUIRED_KEYS:
        if key not in item:
            present = printable(", ".join(sorted(item))) or "none"
            raise DataError(
                f"{where}, key '{key}': missing; found the keys {present}, expected '{key}'; {OTHER_SHAPES}"
            )
    for key in ("question", "answer"):
        if not isinstance(item[key], str):
            hint = f"; {OTHER_SHAPES}" if isinstance(item[key], (int, float)) else ""
            raise _refusal(where, f"key '{key}'", item[key], f"a string{hint}")
    if not isinstance(item["steps"], list):
        hint = f"; {OTHER_SHAPES}" if isinstance(item["steps"], str) else ""
        raise _refusal(where, "key 'steps'", item["steps"], f"a list of strings{hint}")
    for position, step in enumerate(item["steps"]):
        if not isinstance(step, str):
            raise _refusal(where, f"key 'steps', step {position}", step, "a string")


def _refusal(where: str, what: str, found: Any, expected: str) -> DataError:
    return DataError(f"{where}, {what}: found {type(found).__name__} {shown(found)}, expected {expected}")
