"""Golden layouts of every method at every kind of stage; prompts equal the start of the training sequence."""

import itertools

import pytest
from making_layouts import ID, MARKERS, make_layout, make_problem, readable

from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, TokenizedProblem, join
from coconut_ds.methods.layout import IGNORE, expected_tokens, lay_out, lay_out_prompt

STAGES = range(7)


ALL = "s1 s1 s2 s2 s3 s3 A A eos"


@pytest.mark.parametrize(
    ("method", "stage", "expected"),
    [
        ("coconut", 0, f"Q Q <s> <e> | {ALL}"),
        ("coconut", 1, "Q Q <s> <t> <e> | s2 s2 s3 s3 A A eos"),
        ("coconut", 2, "Q Q <s> <t> <t> <e> | s3 s3 A A eos"),
        ("coconut", 3, "Q Q <s> <t> <t> <t> <e> | A A eos"),
        ("coconut", 4, "Q Q <s> <t> <t> <t> <t> <e> | A A eos"),
        ("coconut", 6, "Q Q <s> <t> <t> <t> <t> <t> <t> <e> | A A eos"),
        ("coconut", 7, "Q Q <s> <t> <t> <t> <t> <t> <t> <e> | A A eos"),
        ("no_thoughts", 0, f"Q Q | {ALL}"),
        ("no_thoughts", 1, "Q Q | s2 s2 s3 s3 A A eos"),
        ("no_thoughts", 3, "Q Q | A A eos"),
        ("no_thoughts", 7, "Q Q | A A eos"),
        ("cot", 0, f"Q Q | {ALL}"),
        ("cot", 1, f"Q Q | {ALL}"),
        ("cot", 7, f"Q Q | {ALL}"),
        ("no_cot", 0, "Q Q | A A eos"),
        ("no_cot", 1, "Q Q | A A eos"),
        ("no_cot", 7, "Q Q | A A eos"),
        ("icot", 0, f"Q Q | {ALL}"),
        ("icot", 1, "Q Q | s2 s3 s3 A A eos"),
        ("icot", 2, "Q Q | A A eos"),
        ("icot", 7, "Q Q | A A eos"),
        ("coconut_no_curriculum", 0, f"Q Q <s>{' <t>' * 6} <e> | A A eos"),
        ("coconut_no_curriculum", 7, f"Q Q <s>{' <t>' * 6} <e> | A A eos"),
        ("coconut_reversed", 0, "Q Q s1 s1 s2 s2 s3 s3 <s> <e> A A eos // . . s1 s1 s2 s2 s3 s3 <s> . A A eos"),
        ("coconut_reversed", 1, "Q Q s1 s1 s2 s2 <s> <t> <e> A A eos // . . s1 s1 s2 s2 <s> . . A A eos"),
        ("coconut_reversed", 3, "Q Q <s> <t> <t> <t> <e> A A eos // . . <s> . . . . A A eos"),
        ("coconut_reversed", 4, "Q Q <s> <t> <t> <t> <t> <e> A A eos // . . <s> . . . . . A A eos"),
        ("coconut_reversed", 7, f"Q Q <s>{' <t>' * 6} <e> A A eos // . . <s>{' .' * 7} A A eos"),
        ("pause_as_thought", 0, f"Q Q <s> <e> | {ALL}"),
        ("pause_as_thought", 1, "Q Q <s> <p> <e> | s2 s2 s3 s3 A A eos"),
        ("pause_as_thought", 3, "Q Q <s> <p> <p> <p> <e> | A A eos"),
        ("pause_as_thought", 4, "Q Q <s> <p> <p> <p> <p> <e> | A A eos"),
        ("pause_as_thought", 7, f"Q Q <s>{' <p>' * 6} <e> | A A eos"),
        ("pause", 0, f"Q Q{' <p>' * 6} | A A eos"),
        ("pause", 7, f"Q Q{' <p>' * 6} | A A eos"),
    ],
)
def test_the_layout_of_three_steps_under_each_method(method: str, stage: int, expected: str) -> None:
    assert readable(make_layout(method, stage)) == expected


@pytest.mark.parametrize(
    ("method", "stage", "expected"),
    [
        ("coconut", 1, "Q Q <s> <t> <e> | s2 s2 s3 s3 A A eos"),
        ("coconut", 2, "Q Q <s> <t> <e> | A A eos"),
        ("coconut", 9, "Q Q <s> <t> <e> | A A eos"),
        ("no_thoughts", 1, "Q Q | s2 s2 s3 s3 A A eos"),
        ("no_thoughts", 2, "Q Q | A A eos"),
        ("cot", 2, f"Q Q | {ALL}"),
        ("coconut_no_curriculum", 0, "Q Q <s> <t> <e> | A A eos"),
        ("coconut_reversed", 2, "Q Q <s> <t> <e> A A eos // . . <s> . . A A eos"),
        ("coconut_reversed", 9, "Q Q <s> <t> <e> A A eos // . . <s> . . A A eos"),
        ("pause_as_thought", 2, "Q Q <s> <p> <e> | A A eos"),
        ("pause", 0, "Q Q <p> | A A eos"),
    ],
)
def test_past_the_last_stage_all_steps_go_and_the_thoughts_stay(method: str, stage: int, expected: str) -> None:
    assert readable(make_layout(method, stage, last=1)) == expected


@pytest.mark.parametrize(
    ("method", "c", "stage", "expected"),
    [
        ("coconut", 0, 2, "Q Q <s> <e> | s3 s3 A A eos"),
        ("coconut", 0, 3, "Q Q <s> <e> | A A eos"),
        ("coconut", 2, 0, f"Q Q <s> <e> | {ALL}"),
        ("coconut", 2, 1, "Q Q <s> <t> <t> <e> | s2 s2 s3 s3 A A eos"),
        ("coconut", 2, 2, "Q Q <s> <t> <t> <t> <t> <e> | s3 s3 A A eos"),
        ("coconut", 2, 3, "Q Q <s> <t> <t> <t> <t> <e> | A A eos"),
        ("coconut_no_curriculum", 0, 0, "Q Q <s> <e> | A A eos"),
        ("coconut_no_curriculum", 2, 0, "Q Q <s> <t> <t> <t> <t> <e> | A A eos"),
        ("coconut_reversed", 0, 2, "Q Q s1 s1 <s> <e> A A eos // . . s1 s1 <s> . A A eos"),
        ("coconut_reversed", 2, 2, "Q Q s1 s1 <s> <t> <t> <t> <t> <e> A A eos // . . s1 s1 <s> . . . . . A A eos"),
        ("coconut_reversed", 2, 3, "Q Q <s> <t> <t> <t> <t> <e> A A eos // . . <s> . . . . . A A eos"),
        ("pause_as_thought", 0, 2, "Q Q <s> <e> | s3 s3 A A eos"),
        ("pause_as_thought", 2, 3, "Q Q <s> <p> <p> <p> <p> <e> | A A eos"),
        ("pause", 0, 0, "Q Q | A A eos"),
        ("pause", 2, 0, "Q Q <p> <p> <p> <p> | A A eos"),
    ],
)
def test_each_step_is_replaced_by_c_latents(method: str, c: int, stage: int, expected: str) -> None:
    assert readable(make_layout(method, stage, c=c, last=2)) == expected


@pytest.mark.parametrize(
    ("pad", "num_steps", "stage", "expected"),
    [
        (True, 1, 3, "Q Q <s> <t> <t> <t> <t> <t> <t> <e> | A A eos"),
        (False, 1, 3, "Q Q <s> <t> <t> <e> | A A eos"),
        (True, 0, 1, "Q Q <s> <t> <t> <e> | A A eos"),
        (False, 0, 1, "Q Q <s> <e> | A A eos"),
        (True, 3, 2, "Q Q <s> <t> <t> <t> <t> <e> | s3 s3 A A eos"),
        (False, 3, 2, "Q Q <s> <t> <t> <t> <t> <e> | s3 s3 A A eos"),
        (False, 3, 5, "Q Q <s> <t> <t> <t> <t> <t> <t> <e> | A A eos"),
        (False, 1, 5, "Q Q <s> <t> <t> <e> | A A eos"),
    ],
)
def test_a_problem_shorter_than_the_stage_is_padded_with_thoughts_or_not(
    pad: bool, num_steps: int, stage: int, expected: str
) -> None:
    assert readable(make_layout("coconut", stage, num_steps, c=2, last=4, pad=pad)) == expected
    pauses = make_layout("pause_as_thought", stage, num_steps, c=2, last=4, pad=pad)
    assert readable(pauses) == expected.replace("<t>", "<p>")
    assert (pauses.num_thoughts, pauses.first_thought) == (0, len(pauses))
    turned = make_layout("coconut_reversed", stage, num_steps, c=2, last=4, pad=pad)
    assert turned.num_thoughts == expected.count("<t>")
    assert len(turned) == len(expected.split()) - 1


@pytest.mark.parametrize("method", ["coconut", "coconut_no_curriculum", "coconut_reversed", "pause_as_thought"])
def test_replaced_and_written_steps_are_the_steps_of_the_problem(method: str) -> None:
    """What is replaced comes first, or last if the method starts with the last steps."""
    one, problem = METHODS[method], make_problem()
    for stage, last in itertools.product(range(6), (2, 6)):
        spec = CurriculumSpec(1, last)
        parts = [join(one.replaced(problem, stage, spec)), one.written(problem, stage, spec)]
        assert join(parts[::-1] if method == "coconut_reversed" else parts) == join(problem.steps)


@pytest.mark.parametrize("method", METHODS)
def test_positions_and_counts_are_those_of_the_tokens(method: str) -> None:
    for stage, num_steps, c, pad in itertools.product(STAGES, range(4), range(3), (True, False)):
        layout = make_layout(method, stage, num_steps, c=c, last=4, pad=pad)
        where = [position for position, token in enumerate(layout.input_ids) if token == MARKERS.thought]
        assert where == list(range(layout.first_thought, layout.first_thought + layout.num_thoughts))
        assert where or layout.first_thought == len(layout)
        assert len(layout) == len(layout.labels)
        assert layout.num_targets == sum(label >= 0 for label in layout.labels) >= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_is_the_training_sequence_up_to_its_first_target(method: str) -> None:
    for stage, num_steps, c, pad in itertools.product(STAGES, range(4), range(3), (True, False)):
        layout = make_layout(method, stage, num_steps, c=c, last=4, pad=pad)
        first = next(position for position, label in enumerate(layout.labels) if label != IGNORE)
        latents = sum(token in (MARKERS.thought, MARKERS.pause) for token in layout.input_ids)
        prompt = lay_out_prompt(METHODS[method], make_problem().question, latents, MARKERS)
        assert list(prompt.input_ids) == list(layout.input_ids[:first])
        assert prompt.num_targets == 0
        assert prompt.num_thoughts == (0 if METHODS[method].starts_thinking else layout.num_thoughts)
        assert prompt.first_thought == min(layout.first_thought, len(prompt))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pad", [True, False])
def test_the_number_of_latents_at_inference_is_that_of_a_long_problem_in_training(method: str, pad: bool) -> None:
    """Inference does not know the steps: every question is treated as if it had enough of them."""
    for stage, c in itertools.product(STAGES, range(3)):
        spec = CurriculumSpec(c, 3, pad)
        latents = sum(t in (MARKERS.thought, MARKERS.pause) for t in make_layout(method, stage, 3, c, 3, pad).input_ids)
        assert METHODS[method].num_latents(stage, None, spec) == latents


SYMBOLIC = TokenizedProblem([ID["Q"]] * 2, ([ID["s1"]], [ID["s2"]], [ID["s3"]]), [ID["A"], ID["eos"]], [ID["[A]"]])


@pytest.mark.parametrize(
    ("method", "stage", "expected"),
    [
        ("coconut", 0, "Q Q | s1"),
        ("coconut", 1, "Q Q <t> | s2"),
        ("coconut", 2, "Q Q <t> <t> | s3"),
        ("coconut", 3, "Q Q <t> <t> <t> [A] | A"),
        ("coconut", 4, "Q Q <t> <t> <t> <t> [A] | A"),
        ("coconut", 5, "Q Q <t> <t> <t> <t> [A] | A"),
        ("no_thoughts", 2, "Q Q | s3"),
        ("no_thoughts", 5, "Q Q [A] | A"),
        ("pause_as_thought", 1, "Q Q <p> | s2"),
        ("coconut_no_curriculum", 0, "Q Q <t> <t> <t> <t> [A] | A"),
        ("pause", 0, "Q Q <p> <p> <p> <p> [A] | A"),
        ("no_cot", 0, "Q Q [A] | A"),
        ("cot", 0, "Q Q | s1 s2 s3 [A] A eos"),
        ("icot", 1, "Q Q | s2"),
    ],
)
def test_symbolic_problems_have_one_target_and_no_markers(method: str, stage: int, expected: str) -> None:
    spec = CurriculumSpec(1, 4, tokens_per_epoch=1)
    assert readable(lay_out(METHODS[method], SYMBOLIC, stage, spec, MARKERS)) == expected


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.starts_thinking])
def test_symbolic_prompts_ask_for_the_answer(method: str) -> None:
    spec = CurriculumSpec(1, 4, tokens_per_epoch=1)
    last = METHODS[method].final_stage(METHODS[method].num_stages(SYMBOLIC, spec), spec)
    layout = lay_out(METHODS[method], SYMBOLIC, last, spec, MARKERS)
    latents = METHODS[method].num_latents(last, None, spec)
    prompt = lay_out_prompt(METHODS[method], SYMBOLIC.question, latents, MARKERS, SYMBOLIC.cue)
    assert readable(prompt) == readable(layout).split("|")[0] + "| "
    assert expected_tokens(METHODS[method], SYMBOLIC, last, spec, MARKERS) == layout.targets
