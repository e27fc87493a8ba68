"""Contents of a report on problem files: plain values that ``statistics`` computes and the other modules show."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from coconut_ds.methods.base import CurriculumSpec

PARTS = ("question", "steps", "answer", "whole")
"""Parts of a sequence whose lengths are reported."""
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class FileStats:
    """The statistics of one file."""

    name: str
    lengths: Mapping[str, IntArray]
    """For each of ``PARTS``, the number of tokens in each problem."""
    num_steps: IntArray
    """The number of steps of each problem."""
    num_blank: int
    """Number of problems with blank steps, which are left out."""
    num_unanswered: int
    """Number of problems without an answer."""
    notes: tuple[str, ...]
    """What scoring cannot read or analyse (``checks.warnings_about``)."""
    duplicate_questions: int
    """Number of problems whose question occurs earlier in the file."""
    num_answers: int
    """Number of distinct answers."""
    frequent_answer: str
    """The most frequent answer."""
    frequent_count: int
    """Number of problems with this answer."""
    num_unknown: int
    """Number of unknown tokens."""
    num_new: int
    """Number of tokens that do not occur in the first file."""
    positions: tuple[int, int]
    """Sequence lengths of the longest problem at stage 0 and at the last stage."""

    @property
    def size(self) -> int:
        """Number of problems."""
        return len(self.num_steps)

    @property
    def longest(self) -> int:
        """Index of the first problem with the most tokens."""
        return int(self.lengths["whole"].argmax())


@dataclass(frozen=True)
class Overlap:
    """The problems that two files share."""

    earlier: str
    later: str
    size: int
    """Number of problems in the later file."""
    questions: int
    """Number of these whose question occurs in the earlier file."""
    problems: int
    """Number of these whose question, steps and answer all occur there in one problem."""
    first: tuple[tuple[int, int, str], ...]
    """The first shared questions: index in the later file, index in the earlier file, text."""


@dataclass(frozen=True)
class Span:
    """Consecutive positions of one kind."""

    role: str
    """``question``, ``step``, ``answer`` or one of ``SIGNS``."""
    number: int
    """Number of the step, from 1; 0 for other roles."""
    text: str
    num_tokens: int
    loss: bool


@dataclass(frozen=True)
class Example:
    """A problem of the first file, laid out at every stage."""

    index: int
    num_steps: int
    num_tokens: int
    stages: tuple[tuple[Span, ...], ...]

    def rows(self) -> list[tuple[str, tuple[Span, ...]]]:
        """The spans of each stage, with a title. Consecutive stages with equal sequences share one row."""
        rows = []
        for pieces, run in groupby(range(len(self.stages)), key=lambda stage: self.stages[stage]):
            first, *more = run
            rows.append((f"stages {first}–{more[-1]}" if more else f"stage {first}", pieces))
        return rows


@dataclass(frozen=True)
class Report:
    """The complete report on some files."""

    files: tuple[FileStats, ...]
    overlaps: tuple[Overlap, ...]
    vocabulary: int
    """Size of the vocabulary, without markers."""
    method: str
    spec: CurriculumSpec
    last_stage: int
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    """Sentences about tokens that the tokenizer adds to questions."""
