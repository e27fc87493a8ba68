"""Compares what a program prints with what documentation shows: words exactly, numbers within a tolerance."""

import re
from itertools import zip_longest

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")
RELATIVE, ABSOLUTE = 0.1, 2.0
"""How far a number may be from the one that is shown. Losses and percentages depend a little on the processor."""


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
    words = [re.escape(NUMBER.sub("0", part)) for part in shown.split("…")]
    # Columns are as wide as their numbers.
    pattern = re.sub(r"(?:\\ )+", r"\\s+", ".*?".join(words))
    numbers = [NUMBER.findall(part) for part in shown.split("…")]
    if len(numbers) > 1:
        return re.fullmatch(pattern.replace("0", NUMBER.pattern), printed) is not None
    if re.fullmatch(pattern, NUMBER.sub("0", printed)) is None:
        return False
    pairs = zip(map(_value, numbers[0]), map(_value, NUMBER.findall(printed)), strict=True)
    return all(abs(one - other) <= max(RELATIVE * abs(one), ABSOLUTE * (one > 1), 0.01) for one, other in pairs)


def _value(text: str) -> float:
    return float(text.replace(",", ""))
