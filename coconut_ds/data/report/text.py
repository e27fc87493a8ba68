"""Writes a report on problem files as plain text, with the files side by side."""

import textwrap
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from coconut_ds.data.report.contents import PARTS, Example, FileStats, Overlap, Report, Span
from coconut_ds.data.report.statistics import summarize

LEGEND = (
    "⟦tokens with loss⟧  ● thought  ○ pause  <start> <end> around thoughts  ⏎ newline  <eos> end of sequence",
    "… 99 tokens …  the middle of a question with 99 tokens in total is left out",
)
WIDTH = 118
MOST_ROWS = 20
"""Maximum number of rows of the table of steps; the last row combines all larger numbers of steps."""
BAR = 24
"""Length in characters of a bar that represents all problems."""
QUESTION = 44
"""Maximum length of a question in characters; the middle of a longer question is left out."""


def render_report(report: Report) -> str:
    """The complete report as text."""
    first = report.files[0].name
    sections = [
        "\n".join(
            [
                f"vocabulary: {report.vocabulary:,} tokens, thought markers not counted",
                *report.notes,
                f"method: {report.method}, c_thought {report.spec.c_thought}, max_latent_stage "
                f"{report.spec.max_latent_stage}; trained on {first} its last stage is {report.last_stage}",
            ]
        ),
        _facts(report),
        _lengths(report.files),
        _steps(report.files),
    ]
    notes = [note for file in report.files for note in file.notes]
    if notes:
        sections.append("\n".join(notes))
    if report.overlaps:
        sections.append(_overlaps(report.overlaps))
    if report.examples:
        sections.append("\n".join([f"layouts at each stage, problems of {first}", *(f"  {line}" for line in LEGEND)]))
        sections += [_example(example) for example in report.examples]
    return "\n\n".join(sections) + "\n"


def _facts(report: Report) -> str:
    rows: dict[str, list[str]] = {}
    first = report.files[0].name
    any_blank = any(file.num_blank for file in report.files)
    any_unanswered = any(file.num_unanswered for file in report.files)
    for file in report.files:
        tokens = int(file.lengths["whole"].sum())
        facts = {
            "": file.name,
            "problems": f"{file.size:,}",
            "without steps": _share(int((file.num_steps == 0).sum()), file.size),
            **({"with blank steps, left out": _share(file.num_blank, file.size)} if any_blank else {}),
            **({"without an answer": _share(file.num_unanswered, file.size)} if any_unanswered else {}),
            "question occurs earlier in the file": _share(file.duplicate_questions, file.size),
            "different answers": f"{file.num_answers:,}",
            "most frequent answer": shorten(file.frequent_answer, 28),
            "problems it is right for": _share(file.frequent_count, file.size),
            "unknown tokens": _share(file.num_unknown, tokens),
            **({f"tokens that {first} lacks": _share(file.num_new, tokens)} if len(report.files) > 1 else {}),
            "longest problem": f"#{file.longest}",
            "its positions at stage 0": f"{file.positions[0]:,}",
            f"its positions at stage {report.last_stage}, the last": f"{file.positions[1]:,}",
        }
        for name, value in facts.items():
            rows.setdefault(name, []).append(value)
    return _table([[name, *values] for name, values in rows.items()])


def _lengths(files: Sequence[FileStats]) -> str:
    rows = [["tokens", "", "min", "median", "mean", "95 %", "max"]]
    for part in PARTS:
        for file in files:
            low, *middle, high = summarize(file.lengths[part])
            numbers = [f"{low:,.0f}", *(f"{value:,.1f}" for value in middle), f"{high:,.0f}"]
            rows.append([part if file is files[0] else "", file.name, *numbers])
    return _table(rows, left=2)


def _steps(files: Sequence[FileStats]) -> str:
    found = np.unique(np.concatenate([file.num_steps for file in files])).tolist()
    own, rest = (found, []) if len(found) <= MOST_ROWS else (found[: MOST_ROWS - 1], found[MOST_ROWS - 1 :])
    rows = [["steps", *(cell for file in files for cell in (file.name, ""))]]
    for low, high in [*((number, number) for number in own), *([(rest[0], rest[-1])] if rest else [])]:
        row = [str(low) if low == high else f"{low} to {high}"]
        for file in files:
            count = int(((file.num_steps >= low) & (file.num_steps <= high)).sum())
            row += [_share(count, file.size), "█" * round(BAR * count / file.size)]
        rows.append(row)
    return _table(rows, bars=True)


def _overlaps(overlaps: Sequence[Overlap]) -> str:
    rows = [["file", "earlier file", "shared questions", "shared problems"]]
    named = []
    for pair in overlaps:
        shares = (_share(pair.questions, pair.size), _share(pair.problems, pair.size))
        rows.append([pair.later, pair.earlier, *shares])
        for here, there, text in pair.first:
            named.append(f"  {pair.later} #{here} has the question of {pair.earlier} #{there}: {shorten(text, 60)}")
    return "\n".join([_table(rows, left=2), *named])


def _example(example: Example) -> str:
    lines = [f"#{example.index}: {_counted(example.num_steps, 'step')}, {_counted(example.num_tokens, 'token')}"]
    for stages, pieces in example.rows():
        counts = [_counted(sum(piece.num_tokens for piece in pieces), "position")]
        for role in ("thought", "pause"):
            number = sum(piece.num_tokens for piece in pieces if piece.role == role)
            counts += [_counted(number, role)] if number else []
        counts += [f"loss on {sum(piece.num_tokens for piece in pieces if piece.loss):,}"]
        lines.append(f"  {stages}: {', '.join(counts)}")
        lines += textwrap.wrap(
            _sequence(pieces), WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6, break_on_hyphens=False
        )
    return "\n".join(lines)


def _sequence(pieces: Sequence[Span]) -> str:
    runs = []
    for loss, run in groupby(pieces, key=lambda piece: piece.loss):
        text = " ".join(_piece(piece) for piece in run)
        runs.append(f"⟦{text}⟧" if loss else text)
    return " ".join(runs)


def _piece(piece: Span) -> str:
    if piece.role == "question":
        return shorten(piece.text, QUESTION, f" … {_counted(piece.num_tokens, 'token')} … ")
    return shorten(piece.text, len(piece.text))


def shorten(text: str, limit: int, middle: str = " … ") -> str:
    """Shortens text to about ``limit`` characters by leaving out its middle; unprintable characters become ``�``."""
    if len(text) > limit:
        begin, end = text[: limit // 2], text[-(limit // 2) :]
        # Cut between words where possible.
        begin, end = begin.rpartition(" ")[0] or begin, end.partition(" ")[2] or end
        text = f"{begin}{middle}{end}"
    return "".join(each if each.isprintable() else "�" for each in text.replace("\n", "⏎"))


def _share(count: int, total: int) -> str:
    if count == 0:
        return "0"
    return f"{count:,} ({count / total:.1%})" if count / total >= 0.0005 else f"{count:,} (<0.1%)"


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _table(rows: Sequence[Sequence[str]], left: int = 1, bars: bool = False) -> str:
    """Aligns columns: the first ``left`` columns, and columns with bars, to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number < left or (bars and number % 2 == 0) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
