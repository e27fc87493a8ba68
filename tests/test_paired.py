"""Comparing two files of predictions, and the picture of a sweep."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from coconut_ds.errors import DataError
from coconut_ds.evaluation.paired import Comparison, compare_predictions
from coconut_ds.evaluation.picture import BudgetPoint, draw_sweep, spread
from coconut_ds.evaluation.statistics import mcnemar, paired_difference, wilson


def line(index: int, correct: bool | None = True, **more: Any) -> dict[str, Any]:
    # The question contains a character that str.splitlines() treats as a line end.
    return {"index": index, "question": f"Q\u2028{index}?", "answer": str(index), "correct": correct, **more}


def write(path: Path, lines: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def compared(folder: Path, both: int, only_first: int, only_second: int, neither: int) -> Comparison:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    mixed = sorted(range(len(first)), key=lambda i: (i % 3, i))
    a = write(folder / "a" / "predictions.jsonl", [line(i, first[i]) for i in mixed])
    b = write(folder / "b.jsonl", [line(i, right, text="t", category="x") for i, right in enumerate(second)][::-1])
    return compare_predictions(a.parent, b)


def test_counts_and_statistics_are_those_of_the_pairs_whatever_the_order_of_lines(tmp_path):
    found = compared(tmp_path, 5, 3, 9, 4)
    first = [True] * 8 + [False] * 13
    second = [True] * 5 + [False] * 3 + [True] * 9 + [False] * 4
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (5, 3, 9, 4)
    assert (found.num_problems, found.first.num_right, found.second.num_right) == (21, 8, 14)
    assert (found.first.accuracy, found.second.accuracy) == (8 / 21, 14 / 21)
    assert (found.first.interval, found.second.interval) == (wilson(8, 21), wilson(14, 21))
    assert found.difference == paired_difference(first, second)
    assert found.p_value == mcnemar(first, second).p_value
    assert found.first.path == str(tmp_path / "a" / "predictions.jsonl")
    values = json.loads(json.dumps(found.as_dict()))
    assert values["difference"]["interval"]["low"] == found.difference.interval.low
    assert values["second"]["accuracy"] == 14 / 21


def test_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compared(Path(), 59, 6, 16, 80).text().splitlines() == [
        "first:  a/predictions.jsonl",
        "second: b.jsonl",
        "",
        "161 problems        right   accuracy   95% interval",
        "first                  65      40.4%   33.1 to 48.1%",
        "second                 75      46.6%   39.0 to 54.3%",
        "second - first        +10       +6.2   +0.5 to +12.4 points",
        "",
        "both right             59",
        "only first right        6",
        "only second right      16",
        "both wrong             80",
        "",
        "No difference shown (McNemar's exact test: p = 0.0525): a true difference of +0.5 to +12.4 points would "
        "fit these",
        "answers, or none at all.",
    ]


def test_large_numbers_are_grouped_by_thousands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [line.split() for line in compared(Path(), 1059, 6, 16, 238).text().splitlines()]
    assert ["1,319", "problems"] in [each[:2] for each in words]
    assert ["both", "right", "1,059"] in words


@pytest.mark.parametrize(
    ("counts", "expected", "absent"),
    [
        ((5, 0, 0, 2), "No difference shown: both are right on exactly the same problems.", "more often"),
        ((50, 4, 6, 2), "No difference shown (McNemar's exact test: p = 0.754): a true difference of ", "none at all"),
        ((50, 4, 16, 2), "The second is right more often than the first on problems like these (", "No difference"),
        ((0, 40, 0, 2), "The first is right more often than the second on problems like these (", "No difference"),
        ((0, 40, 0, 2), "p < 0.0001); whether the same holds for models trained with other seeds is not", "= 0.0"),
    ],
)
def test_the_sentence_says_no_more_than_is_shown(tmp_path, counts, expected, absent):
    sentence = compared(tmp_path, *counts).sentence()
    assert expected in sentence
    assert absent not in sentence


GOOD = [line(0), line(1), line(2, False)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [*GOOD[:2], "{broken"],
            r"b\.jsonl: line 3: is not JSON .*expected one prediction per line; make one with: pyth",
        ),
        ([*GOOD, "", "[" * 100_000], r"b\.jsonl: line 5: is not JSON"),
        ([*GOOD[:2], [3]], r"b\.jsonl: line 3: found \[3\], expected an object with index, question, answer, correct"),
        ([*GOOD[:2], {"index": 2}], r"line 3: question: found only the keys \['index'\], expected str"),
        ([*GOOD[:2], line(2) | {"index": True}], r"line 3: index: found true, expected int"),
        ([*GOOD[:2], line(2) | {"answer": 7}], r"line 3: answer: found 7, expected str or null"),
        ([*GOOD[:2], line(2) | {"correct": 1}], r"line 3: correct: found 1, expected bool or null"),
        ([*GOOD[:2], line(2, None)], r"b\.jsonl: line 3: found correct=null for problem 2, .*that have answers"),
        ([*GOOD, line(1)], r"b\.jsonl: line 4: found index 1 again \(first in line 2\), expected each problem once"),
        ([""], r"b\.jsonl: contains no predictions, expected at least one"),
        (
            GOOD[:1],
            r"b\.jsonl: found 1 problems, 2 of the other file's 3 are missing \(index 1, 2\), expected .*a\.jsonl",
        ),
        (
            [*GOOD, line(9)],
            r"a\.jsonl: found 3 problems, 1 of .* 4 are missing \(index 9\), expected .*b\.jsonl; evalu",
        ),
        (
            [line(0), line(1, question="other"), line(2, question="too")],
            r'b\.jsonl: line 2: found the question "other" for problem 1, expected "Q.1\?" as in .*a\.jsonl, line 2 '
            r"\(the question differs for 2 of 3 problems\); evaluate both checkpoints with the same data=",
        ),
        ([*GOOD[:2], line(2, answer=None)], r'line 3: found the answer null for problem 2, expected "2" as in'),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_do(tmp_path, lines, message):
    first, second = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", lines)
    with pytest.raises(DataError, match=f"(?s){message}"):
        compare_predictions(first, second)


def test_problems_without_an_answer_are_left_out_of_a_comparison(tmp_path):
    """Unless no problem was scored."""
    hidden = [line(number, None) for number in (3, 4)]
    first, second = write(tmp_path / "a.jsonl", [*GOOD, *hidden]), write(tmp_path / "b.jsonl", [*hidden, *GOOD])
    found = compare_predictions(first, second)
    assert (found.num_problems, found.num_unscored, found.both_right, found.both_wrong) == (3, 2, 2, 1)
    assert "problems without an answer to compare with, left out: 2" in found.text()
    both = write(tmp_path / "c.jsonl", hidden)
    with pytest.raises(DataError, match="found correct=null for problem 3"):
        compare_predictions(both, both)


def test_predictions_that_were_scored_by_different_rules_are_refused(tmp_path):
    files = []
    for name in ("exact", "number"):
        (tmp_path / name).mkdir()
        files.append(write(tmp_path / name / "predictions.jsonl", GOOD))
        (tmp_path / name / "scores.json").write_text(json.dumps({"scoring": {"name": name, "source": "s"}}))
    with pytest.raises(DataError, match=r"number/predictions.jsonl: found scoring=number, expected exact as in"):
        compare_predictions(*files)
    assert compare_predictions(files[0], files[0]).num_problems == len(GOOD)


def test_files_that_are_not_there_or_no_text_are_named(tmp_path):
    good = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file; expected the predictions\.jsonl of"):
        compare_predictions(good, tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty/predictions\.jsonl: no such file in this folder; expected"):
        compare_predictions(tmp_path / "empty", good)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes\.jsonl: is not UTF-8 text"):
        compare_predictions(good, tmp_path / "bytes.jsonl")


def point(number: int, accuracy: float, **categories: float) -> BudgetPoint:
    return BudgetPoint(number, accuracy, accuracy - 0.02, accuracy + 0.02, categories)


SEVEN = [point(n, 0.7 + n / 30, correct_path=0.5 + n / 30, hallucination=0.3, own_kind=0.2 - n / 30) for n in range(7)]


@pytest.mark.parametrize(
    ("points", "baselines", "height"),
    [
        (SEVEN, {"more ancestors": 0.74, "mentioned less": 0.741, "$5": 0.0}, 768),
        (SEVEN[::-1][:1], {}, 768),
        ([point(n, 0.5) for n in (64, 2, 1, 0, 1024)], {"a long name that goes on and on and on": 1.0}, 444),
        ([BudgetPoint(3, 1.0, 0.99, 1.0 - 1e-16)], {}, 444),
        ([point(0, 0.02), SEVEN[6]], {}, 768),
    ],
)
def test_a_picture_is_as_wide_as_promised_with_a_panel_of_categories_where_there_are_any(
    tmp_path, points, baselines, height
):
    draw_sweep(points, tmp_path / "sweep.png", "title $1 " * 12, baselines)
    head = (tmp_path / "sweep.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (900, height)


def test_a_picture_shows_the_numbers(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw_sweep(SEVEN[::-1], tmp_path, "$1", {"a $": 0.5, "b": 0.7})
    above, below = figures[0].axes
    assert above.get_title(loc="left") == r"\$1"
    assert [list(each) for each in zip(*above.lines[0].get_data(), strict=True)] == [
        [p.num_thoughts, p.accuracy] for p in SEVEN
    ]
    assert [text.get_text() for text in above.texts] == [r"a \$  50.0%", "b  70.0%"]
    assert [text.get_text() for text in below.get_legend().texts] == ["own kind", "hallucination", "correct path"]
    assert list(below.get_xticks()) == list(range(7))
    for bars, name in zip(below.containers, ["correct_path", "hallucination", "own_kind"], strict=True):
        assert [bar.get_height() for bar in bars] == pytest.approx([p.categories[name] for p in SEVEN])
    assert [bar.get_y() + bar.get_height() for bar in below.containers[-1]] == pytest.approx([1.0] * 7)
    draw_sweep([BudgetPoint(3, 0.9, 0.89, 0.91)], tmp_path, "")
    draw_sweep([point(n, 0.5) for n in (0, 1, 2, 4, 64)], tmp_path, "")
    one, many = figures[1].axes[0], figures[2].axes[0]
    assert (*one.get_ylim(), *one.get_xlim()) == pytest.approx((0.85, 0.95, 1.4, 4.6))  # ten points at least
    assert list(many.get_xticks()) == [0, 4, 64]  # the labels 1 and 2 do not fit


def test_labels_move_apart_and_no_more():
    assert spread([0.1, 0.5, 0.9], [0.1] * 3, 0, 1) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5], [0.1, 0.1], 0, 1) == pytest.approx([0.45, 0.55])
    assert spread([0.5, 0.5], [0.1, 0.3], 0, 1) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.01], [0.1, 0.1], 0, 1) == pytest.approx([0.05, 0.15])
    assert spread([0.98, 0.99, 1.0], [0.1] * 3, 0, 1) == pytest.approx([0.75, 0.85, 0.95])
    assert spread([], [], 0, 1) == []
