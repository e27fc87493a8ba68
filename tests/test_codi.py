"""The objective ``codi`` equals a slow twin in all parts and gradients, and trains, resumes and is refused properly."""

import math
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from comparing_objectives import compare, compare_answers
from making_tokenizers import tokenizers
from making_training import column, record, run_left_alone_and_stopped
from recorded_cases import trusted_cases
from recorded_codi import RecordedCodi
from recorded_objectives import Recording
from safetensors.torch import load_file
from slow_codi import CodiOptions, CodiRow, CodiWeights, slow_codi
from slow_thoughts import unchanged
from tiny_models import make_model
from torch_engine import DROPOUT, tiny_experiment

from coconut_ds.data.problem import Problem
from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.tokens import encode_announcements, tokenize
from coconut_ds.errors import ConfigError
from coconut_ds.formats import TEXT
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, TokenizedProblem
from coconut_ds.methods.layout import lay_out
from coconut_ds.model.collate import Collator
from coconut_ds.model.feed import Projection
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.objectives.codi import Codi
from coconut_ds.settings import Config, TrainingConfig
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry, plan_update

MARKERS = MarkerIds(36, 37, 39, 38)
ANNOUNCEMENTS = ([30, 31], [30])
PROBLEMS = [
    TokenizedProblem([1, 2, 3], ([4, 5], [6], [7, 8, 9]), [30, 31, 10, 0]),
    TokenizedProblem([11, 12], ([13],), [30, 14, 15, 0]),
    TokenizedProblem([16], (), [30, 31, 17, 0]),
    TokenizedProblem([2, 4, 6, 8], ([18, 19, 20], [21]), [30, 22, 0]),
    TokenizedProblem([3, 5, 7, 9, 11], ([1], [2], [3], [4]), [30, 31, 31, 0]),
]
"""Three steps, one, none, two and four."""
VALUES = [2, 1, 2, 1, 2]
"""The number of tokens of each answer before its value. 31 may belong to the announcement, as a lone space does."""


class Case(NamedTuple):
    """A loss to compare."""

    method: str
    stage: int
    family: str = "gpt2"
    overrides: tuple[str, ...] = ()
    attention: str = "sdpa"
    checkpointing: bool = False
    pads: bool = False
    ranks: int = 2


CASES = {
    # One thought for a step, so the rows have 2, 1, 0, 2 and 2 thoughts, and steps are left of the longest.
    "ragged": Case("coconut", 2),
    "checkpointing": Case("coconut", 4, checkpointing=True, overrides=("codi.gamma=3",)),
    "jacobi": Case("coconut", 3, "llama", ("codi.distance=l2", "thinking=jacobi", "method.iterations=9"), ranks=1),
    "eager": Case("coconut_no_curriculum", 0, "llama", ("codi.divide_by_std=false",), "eager", pads=True),
    "last_step": Case("coconut_reversed", 1, overrides=("codi.teacher_last_step=true", "codi.teacher_weight=0.5")),
    "pauses": Case("pause_as_thought", 2, "llama", ("feed=identity",), ranks=1),
    "no_thoughts": Case("coconut", 0, overrides=("codi.distance=l2", "codi.divide_by_std=false"), ranks=1),
}


@cache
def config_of(method: str, *overrides: str) -> Config:
    return compose_config(["objective=codi", f"method={method}", *overrides])


def sequences(case: Case) -> Sequences:
    spec = CurriculumSpec(1, 3, pad_latent_to_max=case.pads)
    return Sequences(TrainingConfig(), 0, METHODS[case.method], spec, MARKERS, ANNOUNCEMENTS)


def slow_rows(case: Case) -> list[CodiRow]:
    """The problems as the slow twin reads them."""
    last = "codi.teacher_last_step=true" in case.overrides
    spec, rows = sequences(case).spec, []
    for problem, value in zip(PROBLEMS, VALUES, strict=True):
        steps = problem.steps if last else problem.steps[:-1]
        teacher = lay_out(METHODS["cot"], replace(problem, steps=steps), 0, spec, MARKERS)
        student = lay_out(METHODS[case.method], problem, case.stage, spec, MARKERS)
        places = [len(one) - len(problem.answer) + value - 1 for one in (student, teacher)]
        rows.append(CodiRow(student, teacher, *places))
    return rows


def weights_of(rows: list[CodiRow]) -> CodiWeights:
    """Means over all targets of each view, and over all problems."""
    totals = [sum(row[view].num_targets for row in rows) for view in (0, 1)]
    return CodiWeights(*([1 / total] * len(rows) for total in (*totals, len(rows))))


@pytest.mark.parametrize("name", CASES)
def test_parts_and_gradients_are_those_of_the_slow_twin(name):
    """An update of five problems, in micro batches of two on one rank or two, one of which repeats a problem."""
    case = CASES[name]
    config, maker = config_of(case.method, *case.overrides), sequences(case)
    settings, objective = config.objective.codi, Codi(config)
    model = make_model(case.family)
    model.config._attn_implementation = case.attention
    torch.manual_seed(1)
    feed = Projection(32, 24) if config.objective.feed == "projection" else None
    loop = LatentLoop(model, case.checkpointing, feed=feed)
    arrays = ProblemArrays([arrays_of(PROBLEMS)], ())
    examples = objective.examples(maker, 0, case.stage, arrays, range(len(PROBLEMS)))
    geometry = BatchGeometry(5, 2, 3 - case.ranks + 1, case.ranks)
    collator = Collator(0, config.parallel)
    parts, groups = torch.zeros(3), []
    for rank in range(case.ranks):
        plans = [plan_update(view, geometry, rank, "token", examples.views[0]) for view in examples.views]
        for views in zip(*plans, strict=True):
            found = loop(objective.loss, objective.collate(collator, examples, views))
            found.sum().backward()
            parts += found.detach()
            if views[0].share:
                groups.append(views[0].rows.tolist())
    assert sorted(chain(*groups)) == list(range(5))
    gradients = {name: parameter.grad for name, parameter in loop.named_parameters()}

    rows = slow_rows(case)
    options = CodiOptions(settings.teacher_weight, settings.gamma, settings.distance, settings.divide_by_std)
    loop.zero_grad()
    slow = slow_codi(model, rows, feed or unchanged, options, weights_of(rows), groups)
    sum(slow.values()).backward()
    assert parts.tolist() == pytest.approx([value.item() for value in slow.values()], rel=1e-5)
    for parameter_name, parameter in loop.named_parameters():
        # Without thoughts, nothing goes through the feed of the slow twin.
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(
            gradients[parameter_name], wanted, rtol=1e-3, atol=2e-5 * scale, msg=f"{name} {parameter_name}"
        )


def test_recorded_numbers_are_reproduced():
    """Each loss, the norm of the gradient of each parameter, and greedy answers of the public code, to 1e-4."""
    recording = Recording(Path(__file__).parent / "parity_data" / "objectives" / "codi" / "gpt2")
    found = compare(RecordedCodi(), trusted_cases(recording), each_part=False)
    found.add(compare_answers(RecordedCodi(), recording))
    factor, worst = found.excess()
    assert factor <= 1, worst


def test_half_precision_reads_the_same_states():
    """Its passes are others: the rest joins the last thought, and the last layer attends only where it is read."""
    case = CASES["ragged"]
    objective, arrays = Codi(config_of("coconut")), ProblemArrays([arrays_of(PROBLEMS)], ())
    examples = objective.examples(sequences(case), 0, case.stage, arrays, range(5))
    plans = [plan_update(view, BatchGeometry(5, 5, 1, 1), 0, "token", examples.views[0]) for view in examples.views]
    batch = objective.collate(Collator(0), examples, [plan[0] for plan in plans])
    torch.manual_seed(1)
    feed = Projection(32, 24)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        loop = LatentLoop(make_model("gpt2").to(dtype), feed=feed.to(dtype))
        found.append(loop(objective.loss, batch).tolist())
    assert found[1] == pytest.approx(found[0], rel=0.03)


ANSWERS = ("14", "-5", ".5", "-0.25", "yes", "1,000", "### 7", "", "$3")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "words", "lone_spaces"])
def test_the_value_begins_after_the_announcement_whatever_the_tokenizer(kind):
    """What comes before it is common to all answers that begin alike; what follows it is the rest of the answer."""
    tokenizer = tokenizers()[kind]
    tokens = tokenize(tokenizer, [Problem("the", (), answer) for answer in ANSWERS], TEXT)
    announcements = encode_announcements(tokenizer, TEXT)
    maker = Sequences(TrainingConfig(), 0, METHODS["no_cot"], CurriculumSpec(1, 1), MARKERS, announcements)
    layouts = maker.at_stage(ProblemArrays([arrays_of(tokens)], ()), 0)
    for answer, layout, start in zip(ANSWERS, layouts, maker.value_starts(layouts).tolist(), strict=True):
        before, value = layout.input_ids[layout.answer_start : start], layout.input_ids[start:-1]
        # Word-level tokenizers keep no spaces.
        assert tokenizer.decode(before).strip() == "###", (answer, before)
        assert tokenizer.decode(value).strip() == tokenizer.decode(tokenizer.encode(answer)).strip(), (answer, value)


def test_in_formats_with_a_cue_its_last_token_predicts_the_value():
    problems = [replace(problem, cue=[33, 34]) for problem in PROBLEMS]
    maker = replace(sequences(CASES["eager"]), announcements=())
    arrays = ProblemArrays([arrays_of(problems)], [33, 34])
    examples = Codi(config_of("coconut_no_curriculum")).examples(maker, 0, 0, arrays, range(len(problems)))
    for view, starts in zip(examples.views, examples.value_starts, strict=True):
        found = [layout.input_ids[start - 2 : start + 1] for layout, start in zip(view, starts.tolist(), strict=True)]
        assert found == [[33, 34, problem.answer[0]] for problem in problems]


RUN = (
    *("objective=codi", "feed_width=8", "codi.gamma=2"),
    *("lr_schedule=cosine", "warmup_steps=2", "reset_optimizer=never", DROPOUT),
)


def test_a_run_that_was_stopped_and_continued_is_the_run_left_alone(tmp_path):
    """With dropout, a falling learning rate, a curriculum whose first stage has no thoughts, and a learned feed."""
    whole, stopped, _ = run_left_alone_and_stopped(tmp_path, *RUN)
    assert record(stopped) == record(whole)
    parts = [column(whole, f"train/loss_{name}") for name in Codi.parts]
    assert [sum(values) for values in zip(*parts, strict=True)] == pytest.approx(column(whole, "train/loss"))
    assert all(value > 0 for values in parts for value in values)
    cosine = [1.0, *((1 + math.cos(math.pi * done / 7)) / 2 for done in range(7))]
    assert column(whole, "train/lr") == pytest.approx([1e-3, *(2e-3 * factor for factor in cosine)])
    ends = [one.checkpoint(3) for one in (whole, stopped)]
    for part in ("model.safetensors", "coconut.json", "latent/feed.safetensors"):
        here, there = ((end / part).read_bytes() for end in ends)
        assert here == there, part

    # A run from this checkpoint trains its feed further, with any objective, and refuses to start from another one.
    start = f"load_model_path={ends[0]}"
    trained = load_file(ends[0] / "latent" / "feed.safetensors")
    for overrides in (("objective=likelihood",), RUN):
        feed = tiny_experiment(*overrides, start).backbone.feed
        assert all(torch.equal(value, trained[name]) for name, value in feed.state_dict().items())
    with pytest.raises(
        ConfigError, match=r"run.load_model_path: the feed of this checkpoint is projection of width 8, .* width 16"
    ):
        tiny_experiment("objective=codi", "feed_width=16", start)
