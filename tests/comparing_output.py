"""Compares what a program prints with what documentation shows: words exactly, numbers within a tolerance."""

import re
from itertools import zip_longest

NUMBER = re.compile(r"([-+]?\d[\d,]*\.?\d*)(%?)")
RELATIVE, PERCENT = 0.1, 6.0
"""How far a number may be from the one that is shown, and a percentage, in points. Losses depend a little on the
processor, and so may the answer to one of twenty problems."""


def differences(shown: str, printed: str) -> list[str]:
    """The lines in which a text that documentation shows differs from what was printed.

    In a line that is shown, ``…`` stands for any text, for example for a signature or a duration.
    """
    found = []
    for number, (left, right) in enumerate(zip_longest(shown.splitlines(), printed.splitlines()), 1):
        if left is None or right is None or not _equal(left.rstrip(), right.rstrip()):
            found.append(f"line {number}: shown {left!r}, printed {right!r}")
    return found


def _equal(shown: str, printed: str) -> bool:
    pattern, end = "", 0
    for number in NUMBER.finditer(shown):
        pattern += f"{_words(shown[end : number.start()])}{NUMBER.pattern}"
        end = number.end()
    match = re.fullmatch(pattern + _words(shown[end:]), printed)
    return match is not None and all(map(_near, NUMBER.findall(shown), _pairs(match)))


def _words(text: str) -> str:
    """The pattern of a text between two numbers. Columns are as wide as their numbers, so the widths of spaces vary."""
    return re.sub(r"(?:\\ )+", r"\\s+", ".*?".join(map(re.escape, text.split("…"))))


def _pairs(match: re.Match[str]) -> list[tuple[str, str]]:
    """Each number that was printed, with its percent sign if it has one."""
    groups = match.groups()
    return list(zip(groups[::2], groups[1::2], strict=True))


def _near(shown: tuple[str, str], printed: tuple[str, str]) -> bool:
    one, other = (float(number.rstrip(",").replace(",", "")) for number, _ in (shown, printed))
    allowed = PERCENT if shown[1] else max(RELATIVE * abs(one), 0.01)
    return shown[1] == printed[1] and abs(one - other) <= allowed
