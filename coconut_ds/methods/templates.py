"""Lays out many problems at once. The result equals ``layout.lay_out``, token for token.

A method that keeps or removes whole steps makes sequences of the same shape of all problems with equally many steps:
only the tokens differ. So ``lay_out`` is called once for each stage and number of steps, on a problem whose tokens are
placeholders. The result, a *template*, says which spans of a problem's tokens follow each other, with which markers
between them. The sequences of a batch are then copied by a few operations on arrays.

Shapes:
    B  problems
    U  different templates of a batch
    R  runs of a template: consecutive tokens that are copied together and have the same kind of label
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, TokenizedProblem
from coconut_ds.methods.layout import IGNORE, lay_out
from coconut_ds.methods.layouts import Integers, Layouts, spans

READS_TOKENS = ("num_stages", "written", "segments")
"""The functions of ``Method`` that receive tokens."""
LITERAL = -1
"""In place of a boundary: the run is copied from the markers and the cue, not from the problem."""
PLACEHOLDER = -1000
"""The first placeholder; the others are below it. Token ids are not negative, and ``IGNORE`` is above it."""


@dataclass(frozen=True)
class Pieces:
    """The tokens of B problems; the pieces of a problem are its question, its steps and its answer."""

    ids: Integers
    """The ids of all problems, one after the other."""
    bounds: Integers
    """For each problem, where each of its pieces begins in ``ids``, and where the last one ends."""
    starts: Integers
    """[B + 1] where each problem begins in ``bounds``."""
    cue: Ids
    """``TokenizedProblem.cue``, which all of them share."""

    @property
    def has_empty(self) -> bool:
        """Whether a piece has no tokens."""
        is_last = np.zeros(len(self.bounds), bool)
        is_last[self.starts[1:] - 1] = True
        return bool((np.diff(self.bounds)[~is_last[:-1]] == 0).any())

    @property
    def num_steps(self) -> Integers:
        """[B] number of steps of each problem."""
        return np.diff(self.starts) - 3

    def with_joined_steps(self) -> "Pieces":
        """The same problems, with all steps of a problem as one piece, which is empty where there are none."""
        first, end = self.starts[:-1], self.starts[1:]
        kept = np.stack([first, first + 1, end - 2, end - 1], axis=1)
        return Pieces(self.ids, self.bounds[kept].ravel(), np.arange(len(first) + 1) * 4, self.cue)


class _Run(NamedTuple):
    """Consecutive tokens of a template. A place is a boundary between pieces and the number of tokens after it."""

    first: tuple[int, int]
    end: tuple[int, int]
    has_loss: bool


@dataclass(frozen=True)
class _Template:
    runs: list[_Run]
    thoughts: int
    """Index of the run of thoughts; 0 if there are none."""
    num_thoughts: int
    num_answer: int
    """Number of placeholders of the answer at the end: 0; 1, its first token alone; or 2, the whole answer."""


def unit_of(method: Method) -> str | None:
    """``Method.unit``; None if a subclass of the class that states it does other things with tokens."""
    for kind in type(method).__mro__:
        if "unit" in vars(kind):
            return method.unit
        if any(name in vars(kind) for name in READS_TOKENS):
            return None
    return None


class Templates:
    """Lays out problems under one method and curriculum."""

    def __init__(self, method: Method, spec: CurriculumSpec, markers: MarkerIds) -> None:
        self._method, self._spec, self._markers = method, spec, markers
        self._unit = unit_of(method)
        self._known: dict[tuple[int, int, tuple[int, ...]], _Template] = {}
        self._num_stages: dict[int, int] = {}
        self._literals: list[int] = []

    def cover(self, pieces: Pieces) -> bool:
        """Whether ``lay_out`` can be used for these problems. Otherwise use ``layout.lay_out`` for each of them."""
        # The first token of an empty step, which some formats ask for, would be that of the next one.
        return self._unit is not None and not pieces.has_empty

    def num_stages(self, pieces: Pieces) -> list[int]:
        """``Method.num_stages`` of each problem."""
        _, units = self._in_units(pieces)
        for number in set(units.tolist()) - self._num_stages.keys():
            problem, _ = self._placeholders(number, pieces.cue)
            self._num_stages[number] = self._method.num_stages(problem, self._spec)
        return [self._num_stages[number] for number in units.tolist()]

    def lay_out(self, pieces: Pieces, stages: Integers) -> Layouts:
        """The training sequences of B problems at the stages [B]."""
        pieces, units = self._in_units(pieces)
        base = int(units.max()) + 1
        keys, which = np.unique(stages * base + units, return_inverse=True)
        used = [self._template(key // base, key % base, pieces.cue) for key in keys.tolist()]
        table = np.zeros((len(used), max(len(template.runs) for template in used), 5), np.int64)
        for row, template in zip(table, used, strict=True):
            row[: len(template.runs)] = [(*run.first, *run.end, run.has_loss) for run in template.runs]
        runs = table[which]
        first, end = (self._positions(pieces, runs[..., side], runs[..., side + 1]) for side in (0, 2))
        lengths = end - first
        source = np.concatenate([pieces.ids, np.array(self._literals, np.int64)])
        input_ids = source[spans(first.ravel(), lengths.ravel())]
        has_loss = np.repeat(runs[..., 4].ravel() != 0, lengths.ravel())
        ends = lengths.cumsum(axis=1)
        num_thoughts = np.array([template.num_thoughts for template in used], np.int64)[which]
        thoughts = np.array([template.thoughts for template in used], np.int64)[which]
        begin = (ends - lengths)[np.arange(len(ends)), thoughts]
        last = pieces.starts[1:] - 1
        num_answer = np.array([template.num_answer for template in used], np.int64)[which]
        tokens = np.where(num_answer == 2, pieces.bounds[last] - pieces.bounds[last - 1], num_answer)
        return Layouts(
            input_ids,
            np.where(has_loss, input_ids, IGNORE),
            np.concatenate([[0], ends[:, -1].cumsum()]),
            np.where(num_thoughts > 0, begin, ends[:, -1]),
            num_thoughts,
            (lengths * runs[..., 4]).sum(axis=1),
            np.where(num_answer > 0, ends[:, -1] - tokens, -1),
        )

    def _in_units(self, pieces: Pieces) -> tuple[Pieces, Integers]:
        """The problems with pieces as in the templates, and the number of units [B] of each solution."""
        if self._unit == "step":
            return pieces, pieces.num_steps
        pieces = pieces.with_joined_steps()
        return pieces, np.diff(pieces.bounds)[1::4]

    def _positions(self, pieces: Pieces, boundary: Integers, after: Integers) -> Integers:
        """Positions [B, R] among the ids of the problems, with the literals after them, of places [B, R]."""
        found = pieces.bounds[pieces.starts[:-1, None] + np.maximum(boundary, 0)]
        return np.where(boundary == LITERAL, len(pieces.ids), found) + after

    def _template(self, stage: int, units: int, cue: Ids) -> _Template:
        """The template of problems whose solution has this number of units."""
        key = stage, units, tuple(cue)
        if key not in self._known:
            problem, places = self._placeholders(units, cue)
            layout = lay_out(self._method, problem, stage, self._spec, self._markers)
            end_of_thoughts = layout.first_thought + layout.num_thoughts
            runs: list[_Run] = []
            thoughts = 0
            for position, (token, label) in enumerate(zip(layout.input_ids, layout.labels, strict=True)):
                assert label in (IGNORE, token)
                first, end = places[PLACEHOLDER - token] if token <= PLACEHOLDER else self._literal(token)
                is_border = position in (layout.first_thought, end_of_thoughts)
                if position == layout.first_thought:
                    thoughts = len(runs)
                if runs and runs[-1].end == first and runs[-1].has_loss == (label != IGNORE) and not is_border:
                    runs[-1] = runs[-1]._replace(end=end)
                else:
                    runs.append(_Run(first, end, label != IGNORE))
            num_answer = len(layout) - layout.answer_start if layout.answer_start >= 0 else 0
            self._known[key] = _Template(runs, thoughts, layout.num_thoughts, num_answer)
        return self._known[key]

    def _literal(self, token: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The place of one more marker, or of one more token of the cue."""
        self._literals.append(token)
        return (LITERAL, len(self._literals) - 1), (LITERAL, len(self._literals))

    def _placeholders(
        self, units: int, cue: Ids
    ) -> tuple[TokenizedProblem, list[tuple[tuple[int, int], tuple[int, int]]]]:
        """A problem of placeholders, and the places where each placeholder begins and ends.

        A piece has two of them: its first token, and all the others.
        """
        places: list[tuple[tuple[int, int], tuple[int, int]]] = []

        def token(first: tuple[int, int], end: tuple[int, int]) -> int:
            places.append((first, end))
            return PLACEHOLDER - len(places) + 1

        def piece(number: int) -> Ids:
            return [token((number, 0), (number, 1)), token((number, 1), (number + 1, 0))]

        if self._unit == "step":
            steps = tuple(piece(number) for number in range(1, units + 1))
            answer = piece(units + 1)
        else:
            steps = tuple([token((1, number), (1, number + 1))] for number in range(units))
            answer = piece(2)
        return TokenizedProblem(piece(0), steps, answer, cue), places
