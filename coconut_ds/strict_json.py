"""Reads JSON strictly: every fault of a text is one kind of error, ``JsonError``, whose message says what was found.

Python's own parser raises other errors for deep nesting (``RecursionError``) and for numbers with thousands of digits
(a ``ValueError`` without a place). It accepts NaN, Infinity, numbers beyond the range of floats, lone surrogates, and
objects in which a key occurs twice, of which it keeps the last.
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
"""Largest number of lists and objects around a value. Python functions that call themselves reach about 1,000."""
MAX_DIGITS = 4300
"""Largest number of digits of a whole number, Python's own limit."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can contain half of a surrogate pair; it is not a character, and tokenizers and UTF-8 fail on it."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|-?\d[\d.eE+-]*', re.DOTALL)
"""What matters for the place of a fault: strings, brackets, numbers."""


class JsonError(ValueError):
    """A text is not JSON as this project accepts it."""


def parse_json(text: str, first_line: int = 1, finite: bool = True) -> Any:
    """The value of a JSON text, fully checked. For large files of problems use ``parse_loosely``, which is faster.

    Args:
        text: the complete text.
        first_line: number of its first line in the file, for messages.
        finite: refuse NaN, Infinity and numbers beyond the range of floats. Hugging Face configurations contain some.

    Raises:
        JsonError: the text is not JSON, contains a number with more than ``MAX_DIGITS`` digits, one that is not finite,
            a lone surrogate, or a key that occurs twice in an object with different values, or is nested deeper than
            ``MAX_DEPTH``.
    """
    value = parse_loosely(text, first_line)
    if is_deeper(value, MAX_DEPTH):
        raise JsonError(_nested(text, first_line))
    for one in _scalars(value):
        if finite and isinstance(one, float) and not math.isfinite(one):
            raise JsonError(f"contains {json.dumps(one)}, or a number beyond the range of floats; expected finite ones")
        if isinstance(one, str) and not one.isascii() and LONE_SURROGATE.search(one):
            raise JsonError(f"contains {shown(one)}, half of a surrogate pair; expected Unicode characters")
    return value


def parse_loosely(text: str, first_line: int = 1, unique: bool = False) -> Any:
    """As ``parse_json``, but accepts NaN, Infinity, lone surrogates, and nesting up to what Python's parser accepts.

    With ``unique``, a key that occurs twice in an object is refused even if both values are equal.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else _object)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise JsonError(f"broken JSON at line {line}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise JsonError(_nested(text, first_line)) from error
    except JsonError:
        raise
    except ValueError as error:
        # The only other error of the parser: Python refuses to convert very long numbers.
        raise JsonError(_long_number(text, first_line) or f"is not JSON ({error})") from error


def read_json(path: Path, finite: bool = True) -> Any:
    """The value in a JSON file, checked as by ``parse_json``. A byte order mark is accepted.

    Raises:
        OSError: the file cannot be read.
        JsonError: it is not UTF-8, or see ``parse_json``. The message does not name the file.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return parse_json(text, finite=finite)


def is_deeper(value: Any, limit: int) -> bool:
    """Whether some value is inside more than ``limit`` lists and objects."""
    containers = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        inner = chain.from_iterable(one.values() if isinstance(one, dict) else one for one in containers)
        containers = [one for one in inner if one.__class__ is list or one.__class__ is dict]
        if not containers:
            return False
    return any(containers)


def shown(value: Any, most: int = 80) -> str:
    """A value as JSON for an error message: at most ``most`` characters, all of them valid Unicode."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "a deeply nested value"
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")


def printable(text: str) -> str:
    """A text with its lone surrogates written as escapes, so that it can be written to a file or a terminal."""
    return text.encode("utf-8", "backslashreplace").decode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        first: dict[str, Any] = {}
        for key, value in pairs:
            if key in first and first[key] != value:
                raise JsonError(f"key '{printable(key)}' occurs twice in one object, with different values")
            first[key] = value
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JsonError(f"key '{printable(key)}' occurs twice in one object, expected it once")
        found[key] = value
    return found


def _scalars(value: Any) -> Iterator[Any]:
    """All keys, and all values that are neither lists nor objects."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            yield from one
            rest.extend(one.values())
        elif isinstance(one, list):
            rest.extend(one)
        else:
            yield one


def _nested(text: str, first_line: int) -> str:
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > MAX_DEPTH:
            return f"line {_line(text, token.start(), first_line)}: nested deeper than {MAX_DEPTH} lists and objects"
    return f"nested deeper than {MAX_DEPTH} lists and objects"


def _long_number(text: str, first_line: int) -> str | None:
    for token in _TOKEN.finditer(text):
        digits = token[0].removeprefix("-")
        if digits.isdigit() and len(digits) > MAX_DIGITS:
            line = _line(text, token.start(), first_line)
            return f"line {line}: a number has {len(digits):,} digits, expected at most {MAX_DIGITS:,}"
    return None


def _line(text: str, position: int, first_line: int) -> int:
    return first_line + text.count("\n", 0, position)
