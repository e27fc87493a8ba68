"""Layouts: written as short words, so that a test can state the whole sequence of a problem, and batches of numbers."""

from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, TokenizedProblem
from coconut_ds.methods.layout import IGNORE, Layout, lay_out
from coconut_ds.methods.parallel import Parallel

WORDS = ["eos", "Q", "A", "s1", "s2", "s3", "<s>", "<e>", "<t>", "<p>", "[A]"]

ID = {word: number for number, word in enumerate(WORDS)}

MARKERS = MarkerIds(start=ID["<s>"], end=ID["<e>"], thought=ID["<t>"], pause=ID["<p>"])

RAGGED = [
    TokenizedProblem([1, 2, 3], ([4, 5], [6, 7, 8, 9, 10]), [11, 0]),
    TokenizedProblem([*range(1, 10)], ([12], [13, 14], [15, 16, 17]), [18, 19, 0]),
    TokenizedProblem([20, 21], (), [22, 0]),
    TokenizedProblem([3, 1, 4, 1, 5], ([23, 24, 25],), [26, 0]),
    TokenizedProblem([2, 7, 1], ([27, 28, 29, 30], [31], [32, 33], [34]), [35, 0]),
]
"""Five problems with two, three, no, one and four steps, of one to five tokens. Ids are below 36."""


def make_problem(num_steps: int = 3) -> TokenizedProblem:
    steps = tuple([ID[f"s{number}"]] * 2 for number in range(1, num_steps + 1))
    return TokenizedProblem([ID["Q"]] * 2, steps, [ID["A"], ID["A"], ID["eos"]])


def make_layout(method: str, stage: int, num_steps: int = 3, c: int = 1, last: int = 6, pad: bool = True) -> Layout:
    spec = CurriculumSpec(c, last, pad, tokens_per_epoch=3)
    return lay_out(METHODS[method], make_problem(num_steps), stage, spec, MARKERS)


def jacobi(iterations: int | None) -> Parallel | None:
    """All thoughts at once, in this many passes; None: one after another."""
    return None if iterations is None else Parallel("jacobi", iterations)


def readable(layout: Layout) -> str:
    """``context | targets`` if labels are first ignored and then equal the inputs; otherwise ``inputs // labels``."""
    ids, labels = list(layout.input_ids), list(layout.labels)
    cut = next((position for position, label in enumerate(labels) if label != IGNORE), len(labels))
    inputs = [WORDS[number] for number in ids]
    if labels == [IGNORE] * cut + ids[cut:]:
        return f"{' '.join(inputs[:cut])} | {' '.join(inputs[cut:])}"
    return f"{' '.join(inputs)} // {' '.join('.' if label == IGNORE else WORDS[label] for label in labels)}"


SOME = [
    Layout([5, 6, 39, 39, 7, 8, 9], [IGNORE] * 5 + [8, 9], 2, 2),
    Layout([*range(4, 13), 39, 39, 39, 2, 8], [IGNORE] * 13 + [8], 9, 3),
    Layout([5, 4, 5, 8], [IGNORE, 4, 5, 8], 4, 0),
]
"""Three rows for the tiny models, with two, three and no thoughts."""
LONG = [
    Layout([*range(1, 31), 39, 39, 7, 8], [IGNORE] * 33 + [8], 30, 2),
    Layout([*range(3, 23), 39, 39, 7, 8], [IGNORE] * 19 + [22, IGNORE, IGNORE, IGNORE, 8], 20, 2),
    Layout([*range(2, 36)], [IGNORE] * 32 + [34, 35], 34, 0),
]
"""Three rows with long questions, of which few states are read: a target is within the second question."""
