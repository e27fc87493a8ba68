"""Sequences made together equal those made one by one, token for token, whatever the method and the problems."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.methods import METHODS, templates
from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, TokenizedProblem
from coconut_ds.methods.coconut import Coconut
from coconut_ds.methods.layouts import Layouts
from coconut_ds.methods.templates import Templates, unit_of
from coconut_ds.settings import TrainingConfig

MARKERS = MarkerIds(100, 101, 102, 103)
CUE = [98, 99]


class LastTokens(Coconut):
    """Writes only the last tokens of the solution, and does not state its unit."""

    name: ClassVar[str] = "last_tokens"

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        return super().written(problem, stage, spec)[-2:]


class TwiceAsMany(Coconut):
    """Twice as many thoughts as ``coconut``; it never sees a token."""

    name: ClassVar[str] = "twice_as_many"

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        return 2 * super().num_latents(stage, num_steps, spec)


ALL = {**METHODS, "last_tokens": LastTokens(), "twice_as_many": TwiceAsMany()}


def pieces(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 90), min_size=least, max_size=most)


def problems(cue: Ids, least: int) -> st.SearchStrategy[list[TokenizedProblem]]:
    """Ragged problems with 0 to 6 steps; ``least`` tokens in a step at least."""
    steps = st.lists(pieces(least, 5), max_size=6).map(tuple)
    one = st.builds(TokenizedProblem, pieces(1, 8), steps, pieces(1, 3), st.just(cue))
    return st.lists(one, min_size=1, max_size=10)


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    name=st.sampled_from(sorted(ALL)),
    cue=st.sampled_from([[], CUE]),
    spec=st.builds(CurriculumSpec, st.integers(0, 2), st.integers(0, 4), st.booleans(), st.integers(1, 4)),
    mix=st.sampled_from([{}, {"uniform_prob": 0.5}, {"replay_prob": 0.5}, {"uniform_prob": 1.0}]),
)
def test_sequences_made_together_are_those_made_one_by_one(data, name, cue, spec, mix):
    """Every method, custom ones included, at every kind of stage, with and without mixing; also where steps have no
    tokens, and in both kinds of formats."""
    some = data.draw(problems(cue, least=data.draw(st.sampled_from([0, 1]))))
    stage, epoch, cut = (data.draw(st.integers(0, most)) for most in (7, 3, len(some)))
    order = data.draw(st.permutations(range(len(some))))
    arrays = ProblemArrays([arrays_of(some[:cut]), arrays_of(some[cut:])], cue)
    assert list(arrays) == some
    maker = Sequences(TrainingConfig(**mix), 7, ALL[name], spec, MARKERS)
    for _ in range(2):  # the second time from templates that are known
        together = maker.for_training(epoch, stage, arrays, order)
        assert_equal(together, [maker.one_for_training(epoch, stage, index, some[index]) for index in order])
        assert_equal(maker.at_stage(arrays, stage), [maker.one(problem, stage) for problem in some])


def assert_equal(found: Layouts, expected: list) -> None:
    assert list(found) == expected
    slow = Layouts.of(expected)
    for name in ("input_ids", "labels", "starts", "first_thought", "num_thoughts", "lengths", "num_targets"):
        assert np.array_equal(getattr(found, name), getattr(slow, name)), name
    rows = np.arange(len(expected))[::-2]
    assert list(found.take(rows)) == [expected[row] for row in rows]


def test_only_a_method_whose_use_of_tokens_is_known_is_laid_out_together(monkeypatch):
    """All methods of this project are; a subclass that overrides what receives tokens must say so."""
    assert {name: unit_of(method) for name, method in METHODS.items()} == {
        name: "token" if name == "icot" else "step" for name in METHODS
    }
    assert unit_of(LastTokens()) is None
    assert unit_of(TwiceAsMany()) == "step"
    laid_out = []
    monkeypatch.setattr(Templates, "lay_out", lambda *arguments: laid_out.append(arguments))
    problem = TokenizedProblem([1], ([2, 3], [4]), [5])
    for method, steps in ((TwiceAsMany(), problem.steps), (LastTokens(), problem.steps), (TwiceAsMany(), ([2], []))):
        arrays = ProblemArrays([arrays_of([TokenizedProblem([1], steps, [5])])], ())
        Sequences(TrainingConfig(), 0, method, CurriculumSpec(1, 2), MARKERS).at_stage(arrays, 1)
    assert len(laid_out) == 1


@pytest.mark.parametrize("method", [METHODS["coconut"], METHODS["icot"]])
def test_lay_out_is_called_once_for_each_stage_and_number_of_steps(monkeypatch, method):
    """Not once for each problem."""
    calls, lay_out = [], templates.lay_out
    monkeypatch.setattr(templates, "lay_out", lambda *arguments: calls.append(arguments) or lay_out(*arguments))
    some = [TokenizedProblem([number], ([1, 2],) * (number % 3), [5]) for number in range(50)]
    arrays = ProblemArrays([arrays_of(some)], ())
    maker = Sequences(TrainingConfig(), 0, method, CurriculumSpec(1, 2), MARKERS)
    for stage in (0, 1, 0):
        maker.at_stage(arrays, stage)
    assert len(calls) == 2 * 3
