"""Golden layouts of every method at every kind of stage, and prompts equal to what training shows first."""

import itertools

import pytest

from coconut_ds.layout import IGNORE, Layout, lay_out, lay_out_prompt
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, TokenizedProblem

WORDS = ["eos", "Q", "A", "s1", "s2", "s3", "<s>", "<e>", "<t>"]
ID = {word: number for number, word in enumerate(WORDS)}
MARKERS = MarkerIds(start=ID["<s>"], end=ID["<e>"], thought=ID["<t>"])
STAGES = range(7)


def problem(num_steps: int = 3) -> TokenizedProblem:
    steps = tuple([ID[f"s{number}"]] * 2 for number in range(1, num_steps + 1))
    return TokenizedProblem([ID["Q"]] * 2, steps, [ID["A"], ID["A"], ID["eos"]])


def made(method: str, stage: int, num_steps: int = 3, c: int = 1, last: int = 6, pad: bool = True) -> Layout:
    return lay_out(METHODS[method], problem(num_steps), stage, CurriculumSpec(c, last, pad), MARKERS)


def read(layout: Layout) -> str:
    """``context | targets`` where labels are nothing, then the inputs themselves; else both lines in full."""
    ids, labels = list(layout.input_ids), list(layout.labels)
    cut = next((position for position, label in enumerate(labels) if label != IGNORE), len(labels))
    inputs = [WORDS[number] for number in ids]
    if labels == [IGNORE] * cut + ids[cut:]:
        return f"{' '.join(inputs[:cut])} | {' '.join(inputs[cut:])}"
    return f"{' '.join(inputs)} // {' '.join('.' if label == IGNORE else WORDS[label] for label in labels)}"


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
    ],
)
def test_each_method_lays_three_steps_out_so(method: str, stage: int, expected: str) -> None:
    assert read(made(method, stage)) == expected


@pytest.mark.parametrize(
    ("method", "stage", "expected"),
    [
        ("coconut", 1, "Q Q <s> <t> <e> | s2 s2 s3 s3 A A eos"),
        ("coconut", 2, "Q Q <s> <t> <e> | A A eos"),
        ("coconut", 9, "Q Q <s> <t> <e> | A A eos"),
        ("no_thoughts", 1, "Q Q | s2 s2 s3 s3 A A eos"),
        ("no_thoughts", 2, "Q Q | A A eos"),
        ("cot", 2, f"Q Q | {ALL}"),
    ],
)
def test_past_the_last_stage_all_steps_go_and_the_thoughts_stay(method: str, stage: int, expected: str) -> None:
    assert read(made(method, stage, last=1)) == expected


@pytest.mark.parametrize(
    ("c", "stage", "expected"),
    [
        (0, 2, "Q Q <s> <e> | s3 s3 A A eos"),
        (0, 3, "Q Q <s> <e> | A A eos"),
        (2, 0, f"Q Q <s> <e> | {ALL}"),
        (2, 1, "Q Q <s> <t> <t> <e> | s2 s2 s3 s3 A A eos"),
        (2, 2, "Q Q <s> <t> <t> <t> <t> <e> | s3 s3 A A eos"),
        (2, 3, "Q Q <s> <t> <t> <t> <t> <e> | A A eos"),
    ],
)
def test_c_thoughts_stand_for_each_step(c: int, stage: int, expected: str) -> None:
    assert read(made("coconut", stage, c=c, last=2)) == expected


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
    assert read(made("coconut", stage, num_steps, c=2, last=4, pad=pad)) == expected


@pytest.mark.parametrize("method", METHODS)
def test_positions_and_counts_are_those_of_the_tokens(method: str) -> None:
    for stage, num_steps, c, pad in itertools.product(STAGES, range(4), range(3), (True, False)):
        layout = made(method, stage, num_steps, c=c, last=4, pad=pad)
        where = [position for position, token in enumerate(layout.input_ids) if token == MARKERS.thought]
        assert where == list(range(layout.first_thought, layout.first_thought + layout.num_thoughts))
        assert where or layout.first_thought == len(layout)
        assert len(layout) == len(layout.labels)
        assert layout.num_targets == sum(label >= 0 for label in layout.labels) >= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_is_the_training_sequence_up_to_its_first_target(method: str) -> None:
    for stage, num_steps, c, pad in itertools.product(STAGES, range(4), range(3), (True, False)):
        layout = made(method, stage, num_steps, c=c, last=4, pad=pad)
        context = read(layout).split(" | ")[0]
        prompt = lay_out_prompt(METHODS[method], problem().question, layout.num_thoughts, MARKERS)
        assert read(prompt) == f"{context} | "
        assert prompt.num_thoughts == layout.num_thoughts
        assert prompt.first_thought == min(layout.first_thought, len(prompt))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pad", [True, False])
def test_the_number_of_thoughts_at_inference_is_that_of_a_long_problem_in_training(method: str, pad: bool) -> None:
    """At inference the steps are not looked at: every question is treated like one with enough of them."""
    for stage, c in itertools.product(STAGES, range(3)):
        spec = CurriculumSpec(c, 3, pad)
        assert METHODS[method].num_thoughts(stage, None, spec) == made(method, stage, 3, c, 3, pad).num_thoughts
