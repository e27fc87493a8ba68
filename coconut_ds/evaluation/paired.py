"""Compares two evaluations of the same problems, problem by problem, from their ``predictions.jsonl``.

A paired comparison can show a difference that the two separate confidence intervals would hide, because problems that
are hard for both models cancel out.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import AccuracyDifference, Interval, mcnemar, paired_difference, wilson
from coconut_ds.strict_json import parse_json, read_json, shown

PREDICTIONS, SCORES, VOTES = "predictions.jsonl", "scores.json", "votes.jsonl"
SIGNATURE = re.compile(r"[0-9a-f]{12}")
EXPECTED_TYPES: Mapping[str, tuple[type, ...]] = {
    "index": (int,),
    "question": (str,),
    "answer": (str, type(None)),
    "correct": (bool, type(None)),
}
"""Keys that each line must have, with the types that are allowed for their values."""
SIGNIFICANT = 0.05
"""A p-value below this counts as a difference; the intervals are at 95 % to match."""
WIDTH = 118
"""Line width of the final sentence, in characters."""
MOST_NAMED = 5
"""Largest number of indices that an error lists."""
HOW_TO_MAKE = "make one with: python coconut_ds/evaluate.py checkpoint=FOLDER data=GROUP_OR_FILE"
SAME_DATA = "evaluate both checkpoints with the same data=..."


@dataclass(frozen=True)
class Side:
    """One of the two evaluations."""

    path: str
    num_right: int
    accuracy: float
    """From 0 to 1."""
    interval: Interval
    """Wilson interval of the accuracy, at 95 %."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two evaluations of the same problems; counts are numbers of problems."""

    first: Side
    second: Side
    num_problems: int
    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    difference: AccuracyDifference
    """Accuracy of the second minus accuracy of the first, with Tango's interval at 95 %."""
    p_value: float
    """p-value of McNemar's exact test."""
    num_unscored: int = 0
    """Number of problems without an answer to compare with, which are left out."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)

    def text(self) -> str:
        """The comparison as a table, followed by one sentence that says what it shows."""
        gap = self.difference
        rows = [
            (f"{self.num_problems:,} problems", "right", "accuracy", "95% interval"),
            *(
                (name, f"{side.num_right:,}", f"{side.accuracy:.1%}", _range(side.interval, "{:.1f}", "%"))
                for name, side in (("first", self.first), ("second", self.second))
            ),
            (
                "second - first",
                f"{self.second.num_right - self.first.num_right:+,}",
                f"{100 * gap.estimate:+.1f}",
                _range(gap.interval, "{:+.1f}", " points"),
            ),
            ("", "", "", ""),
            ("both right", f"{self.both_right:,}", "", ""),
            ("only first right", f"{self.only_first:,}", "", ""),
            ("only second right", f"{self.only_second:,}", "", ""),
            ("both wrong", f"{self.both_wrong:,}", "", ""),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        table = [f"{a:<{widths[0]}}   {b:>{widths[1]}}   {c:>{widths[2]}}   {d}".rstrip() for a, b, c, d in rows]
        names = [f"first:  {self.first.path}", f"second: {self.second.path}"]
        if self.num_unscored:
            table.append(f"problems without an answer to compare with, left out: {self.num_unscored:,}")
        sentence = textwrap.fill(self.sentence(), WIDTH, break_on_hyphens=False)
        return "\n".join([*names, "", *table, "", sentence]) + "\n"

    def sentence(self) -> str:
        """One sentence that says what the numbers show, without claiming more."""
        if self.only_first == self.only_second == 0:
            return "No difference shown: both are right on exactly the same problems."
        test = f"McNemar's exact test: p {_p_value(self.p_value)}"
        interval = self.difference.interval
        if self.p_value >= SIGNIFICANT:
            # The interval is approximate and can exclude zero where the exact test, which is more conservative, does
            # not reject equality.
            none = "" if interval.low <= 0 <= interval.high else ", or none at all"
            reach = _range(interval, "{:+.1f}", " points")
            return f"No difference shown ({test}): a true difference of {reach} would fit these answers{none}."
        better, worse = ("second", "first") if self.only_second > self.only_first else ("first", "second")
        return (
            f"The {better} is right more often than the {worse} on problems like these ({test}); whether the same "
            "holds for models trained with other seeds is not shown."
        )


@dataclass(frozen=True)
class _Answered:
    """The values of one line that the comparison needs."""

    line: int
    question: str
    answer: str | None
    correct: bool | None


def compare_predictions(first: Path, second: Path) -> Comparison:
    """Compares two files of predictions, or two folders that contain a ``predictions.jsonl``.

    Lines may be in any order; problems are matched by ``index``. Each line needs the keys "index", "question", "answer"
    and "correct"; other keys are ignored. Problems without an answer to compare with ("correct": null in both files)
    are left out.

    Raises:
        DataError: a file is missing or empty, a line has the wrong form, a problem was scored in only one file or no
            problem in either, or the two files are not about the same problems or were scored by different rules.
    """
    first, second = _locate(first), _locate(second)
    _check_scoring(first, second)
    one, other = _read(first), _read(second)
    _check_same(first, one, second, other)
    unscored = {index for index in one if one[index].correct is None and other[index].correct is None}
    scored = sorted(one if len(unscored) == len(one) else one.keys() - unscored)
    a, b = ([_flag(path, index, read[index]) for index in scored] for path, read in ((first, one), (second, other)))
    test = mcnemar(a, b)
    both_right = sum(a) - test.only_first
    return Comparison(
        first=_side(first, a),
        second=_side(second, b),
        num_problems=len(a),
        both_right=both_right,
        only_first=test.only_first,
        only_second=test.only_second,
        both_wrong=len(a) - both_right - test.only_first - test.only_second,
        difference=paired_difference(a, b),
        p_value=test.p_value,
        num_unscored=len(unscored),
    )


def _check_scoring(first: Path, second: Path) -> None:
    """Raises a ``DataError`` if the scores beside the two files name different rules of scoring."""
    one, other = _scoring_of(first), _scoring_of(second)
    if None not in (one, other) and one != other:
        raise DataError(f"{second}: found scoring={other}, expected {one} as in {first}; evaluate again with one rule")


def _scoring_of(path: Path) -> str | None:
    try:
        return str(read_json(path.with_name(SCORES))["scoring"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        # Predictions of earlier versions, or without their scores.
        return None


def _flag(path: Path, index: int, answered: _Answered) -> bool:
    if answered.correct is None:
        raise DataError(
            f"{path}: line {answered.line}: found correct=null for problem {index}, expected true or false; the "
            "problem has no answer to compare with: evaluate on problems that have answers"
        )
    return answered.correct


def _side(path: Path, correct: list[bool]) -> Side:
    return Side(str(path), sum(correct), sum(correct) / len(correct), wilson(sum(correct), len(correct)))


def _locate(path: Path) -> Path:
    path = path if path.exists() else _with_signature(path)
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        found = "no such file" if file == path else "no such file in this folder"
        raise DataError(f"{file}: {found}; expected the {PREDICTIONS} of an evaluation; {HOW_TO_MAKE}")
    return file


def _with_signature(path: Path) -> Path:
    """The only folder of predictions named ``path`` and a signature; ``path`` itself if there is none.

    Raises:
        DataError: there are several.
    """
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    found = [
        one
        for one in sorted(siblings)
        if one.name.startswith(f"{path.name}-")
        and SIGNATURE.fullmatch(one.name.removeprefix(f"{path.name}-"))
        and (one / PREDICTIONS).is_file()
    ]
    if len(found) > 1:
        raise DataError(f"{path}: found {len(found)} evaluations, expected one of {', '.join(map(str, found))}")
    return found[0] if found else path


def _read(path: Path) -> dict[int, _Answered]:
    """Reads the predictions of a file, by problem index."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); {HOW_TO_MAKE}") from error
    found: dict[int, _Answered] = {}
    # Not splitlines(): it also splits at other characters, such as U+2028, which questions may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        index, answered = _parse(path, number, line)
        if index in found:
            if path.name == PREDICTIONS and path.with_name(VOTES).is_file():
                raise DataError(
                    f"{path}: has several samples of each problem; compare the majority votes instead: {VOTES} in the "
                    "same folder"
                )
            raise DataError(
                f"{path}: line {number}: found index {index} again (first in line {found[index].line}), expected each "
                f"problem once; {HOW_TO_MAKE}"
            )
        found[index] = answered
    if not found:
        raise DataError(f"{path}: contains no predictions, expected at least one; {HOW_TO_MAKE}")
    return found


def _parse(path: Path, number: int, line: str) -> tuple[int, _Answered]:
    try:
        item = parse_json(line)
    except ValueError as error:
        raise DataError(
            f"{path}: line {number}: is not JSON ({error}), expected one prediction per line; {HOW_TO_MAKE}"
        ) from error
    if not isinstance(item, dict):
        raise DataError(
            f"{path}: line {number}: found {shown(item)}, expected an object with {', '.join(EXPECTED_TYPES)}; "
            f"{HOW_TO_MAKE}"
        )
    for key, kinds in EXPECTED_TYPES.items():
        # Compares type() instead of using isinstance(), because True is an instance of int.
        if key not in item or type(item[key]) not in kinds:
            found = shown(item[key]) if key in item else f"only the keys {sorted(item)}"
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise DataError(f"{path}: line {number}: {key}: found {found}, expected {expected}; {HOW_TO_MAKE}")
    return item["index"], _Answered(number, item["question"], item["answer"], item["correct"])


def _check_same(first: Path, one: Mapping[int, _Answered], second: Path, other: Mapping[int, _Answered]) -> None:
    """Raises a ``DataError`` if the two files are not about the same problems."""
    for path, here, there in ((second, other, one), (first, one, other)):
        if missing := sorted(there.keys() - here.keys()):
            named = ", ".join(map(str, missing[:MOST_NAMED])) + (", ..." if len(missing) > MOST_NAMED else "")
            raise DataError(
                f"{path}: found {len(here):,} problems, {len(missing):,} of the other file's {len(there):,} are "
                f"missing (index {named}), expected the same problems as in {first if path == second else second}; "
                f"{SAME_DATA}"
            )
    for key in ("question", "answer"):
        differing = [index for index in sorted(one) if getattr(one[index], key) != getattr(other[index], key)]
        if differing:
            a, b = one[differing[0]], other[differing[0]]
            raise DataError(
                f"{second}: line {b.line}: found the {key} {shown(getattr(b, key))} for problem {differing[0]}, "
                f"expected {shown(getattr(a, key))} as in {first}, line {a.line} (the {key} differs for "
                f"{len(differing):,} of {len(one):,} problems); {SAME_DATA}"
            )


def _range(interval: Interval, form: str, unit: str) -> str:
    """An interval of shares, formatted in percent."""
    return f"{form.format(100 * interval.low)} to {form.format(100 * interval.high)}{unit}"


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.3g}"
