"""Makes the sequences of a run's problems: at the stage of an epoch, with stage mixing, many at a time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, TokenizedProblem
from coconut_ds.methods.layout import Layout, lay_out
from coconut_ds.methods.layouts import Integers, Layouts
from coconut_ds.methods.templates import Pieces, Templates
from coconut_ds.settings import TrainingConfig


@dataclass(frozen=True)
class Sequences:
    """Makes sequences under one method and curriculum."""

    training: TrainingConfig
    seed: int
    """``run.seed``."""
    method: Method
    spec: CurriculumSpec
    markers: MarkerIds
    announcements: tuple[Ids, ...] = ()
    """See ``tokens.encode_announcements``."""

    def under(self, method: Method) -> "Sequences":
        """Makes the sequences of the same problems under another method."""
        if method is self.method:
            return self
        if method not in self._others:
            self._others[method] = replace(self, method=method)
        return self._others[method]

    def one(self, problem: TokenizedProblem, stage: int) -> Layout:
        """The sequence that ``problem`` becomes at ``stage``."""
        return lay_out(self.method, problem, stage, self.spec, self.markers)

    def one_for_training(self, epoch: int, stage: int, index: int, problem: TokenizedProblem) -> Layout:
        """The sequence that ``problem`` becomes in an epoch of ``stage``; with stage mixing if there is a curriculum.

        ``index`` is the index of the problem in the epoch's training set.
        """
        return self.one(problem, self.stage_of(epoch, stage, index, problem))

    def stage_of(self, epoch: int, stage: int, index: int, problem: TokenizedProblem) -> int:
        """The stage at which a problem is trained in an epoch of ``stage``; arguments as for ``one_for_training``."""
        if not self._mixes:
            return stage
        stages = self.method.num_stages(problem, self.spec)
        return mixed_stage(self.training, self.seed, epoch, index, stage, stages)

    def replaced_steps(self, epoch: int, stage: int, index: int, problem: TokenizedProblem) -> tuple[Ids, ...]:
        """The steps that a problem's latents replace; arguments as for ``one_for_training``."""
        return self.method.replaced(problem, self.stage_of(epoch, stage, index, problem), self.spec)

    def at_stage(self, problems: ProblemArrays, stage: int) -> Layouts:
        """The sequences that all problems become at ``stage``; equal to those of ``one``."""
        pieces = self._pieces(problems, range(len(problems)))
        if pieces is None:
            return Layouts.of([self.one(problem, stage) for problem in problems])
        return self._templates.lay_out(pieces, np.full(len(problems), stage))

    def for_training(self, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]) -> Layouts:
        """The sequences that the problems with these indices become; equal to those of ``one_for_training``.

        A problem at a time only where the method does not state its ``unit``, or a step has no tokens.
        """
        pieces = self._pieces(problems, indices)
        if pieces is None:
            return Layouts.of([self.one_for_training(epoch, stage, index, problems[index]) for index in indices])
        stages = [stage] * len(indices)
        if self._mixes:
            nums = zip(indices, self._templates.num_stages(pieces), strict=True)
            stages = [mixed_stage(self.training, self.seed, epoch, index, stage, num) for index, num in nums]
        return self._templates.lay_out(pieces, np.array(stages))

    def value_starts(self, layouts: Layouts) -> Integers:
        """[B] where the value of each answer begins, after what announces it; all sequences contain their answers."""
        begins, rooms = layouts.starts[:-1] + layouts.answer_start, layouts.lengths - layouts.answer_start
        found = np.zeros(len(layouts), np.int64)
        for announcement in self.announcements:
            equal, count = np.ones(len(layouts), bool), np.zeros(len(layouts), np.int64)
            for place, token in enumerate(announcement):
                # At least the last token of the answer, which ends the text, counts as its value.
                equal &= place < rooms - 1
                equal &= layouts.input_ids[np.where(equal, begins + place, 0)] == token
                count += equal
            found = np.maximum(found, count)
        return layouts.answer_start + found

    @property
    def _mixes(self) -> bool:
        """Whether problems may be at another stage than their epoch."""
        return self.method.has_curriculum and bool(self.training.uniform_prob or self.training.replay_prob)

    @cached_property
    def _others(self) -> dict[Method, "Sequences"]:
        return {}

    @cached_property
    def _templates(self) -> Templates:
        return Templates(self.method, self.spec, self.markers)

    def _pieces(self, problems: ProblemArrays, indices: Sequence[int]) -> Pieces | None:
        """The tokens of problems as arrays; None if their sequences have to be made one by one."""
        pieces = problems.pieces(indices)
        return pieces if self._templates.cover(pieces) else None


def mixed_stage(training: TrainingConfig, seed: int, epoch: int, problem: int, stage: int, num_stages: int) -> int:
    """The stage at which one problem is trained in one epoch of ``stage``.

    With probability ``training.uniform_prob`` it is drawn uniformly from 0..num_stages, all stages of the problem
    including later ones (the reference implementation's mixing); with probability ``training.replay_prob`` from
    0..stage ("Reasoning by Superposition", arXiv 2505.12514). The draw depends only on (seed, epoch, problem), not on
    ranks, threads or order.

    Args:
        training: holds the two probabilities.
        seed: ``run.seed``.
        epoch: counted from 0.
        problem: index of the problem in the epoch's training set.
        stage: stage of the epoch.
        num_stages: number of stages of the problem (``Method.num_stages``).
    """
    probability = training.uniform_prob or training.replay_prob
    if not probability:
        return stage
    draw = random.Random(f"stage/{seed}/{epoch}/{problem}")
    if draw.random() >= probability:
        return stage
    return draw.randint(0, num_stages if training.uniform_prob else stage)
