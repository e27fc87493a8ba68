"""Stage mixing, golden: which problems of an epoch get another stage, the same on every rank and worker."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from making_layouts import ID, MARKERS, make_problem, readable

from coconut_ds.data.sequences import mixed_stage
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.layout import Layout, lay_out
from coconut_ds.settings import TrainingConfig
from coconut_ds.training.batches import BatchGeometry, epoch_batches, plan_update

MIXES = {"uniform": TrainingConfig(uniform_prob=0.5), "replay": TrainingConfig(replay_prob=0.5)}
NUM_STEPS = (3, 1, 3, 2, 3, 3, 1, 3)
EPOCH = 146
SPEC = CurriculumSpec(1, 2, tokens_per_epoch=2)


GOLDEN_STAGES = {"uniform": [3, 0, 1, 2, 2, 0, 2, 2], "replay": [1, 2, 0, 2, 2, 0, 2, 1]}
GOLDEN_ROWS = [
    (
        "cot",
        [
            "Q Q | s1 s1 s2 s2 s3 s3 A A eos",
            "Q Q | s1 s1 A A eos",
            "Q Q | s1 s1 s2 s2 s3 s3 A A eos",
            "Q Q | s1 s1 s2 s2 A A eos",
        ],
    ),
    ("no_cot", ["Q Q | A A eos", "Q Q | A A eos", "Q Q | A A eos", "Q Q | A A eos"]),
    ("no_thoughts", ["Q Q | A A eos", "Q Q | s1 s1 A A eos", "Q Q | s2 s2 s3 s3 A A eos", "Q Q | A A eos"]),
    ("icot", ["Q Q | A A eos", "Q Q | s1 s1 A A eos", "Q Q | s2 s2 s3 s3 A A eos", "Q Q | A A eos"]),
    (
        "coconut",
        [
            "Q Q <s> <t> <t> <e> | A A eos",
            "Q Q <s> <e> | s1 s1 A A eos",
            "Q Q <s> <t> <e> | s2 s2 s3 s3 A A eos",
            "Q Q <s> <t> <t> <e> | A A eos",
        ],
    ),
    (
        "coconut_no_curriculum",
        [
            "Q Q <s> <t> <t> <e> | A A eos",
            "Q Q <s> <t> <t> <e> | A A eos",
            "Q Q <s> <t> <t> <e> | A A eos",
            "Q Q <s> <t> <t> <e> | A A eos",
        ],
    ),
    (
        "coconut_reversed",
        [
            "Q Q <s> <t> <t> <e> A A eos // . . <s> . . . A A eos",
            "Q Q s1 s1 <s> <e> A A eos // . . s1 s1 <s> . A A eos",
            "Q Q s1 s1 s2 s2 <s> <t> <e> A A eos // . . s1 s1 s2 s2 <s> . . A A eos",
            "Q Q <s> <t> <t> <e> A A eos // . . <s> . . . A A eos",
        ],
    ),
    (
        "pause_as_thought",
        [
            "Q Q <s> <p> <p> <e> | A A eos",
            "Q Q <s> <e> | s1 s1 A A eos",
            "Q Q <s> <p> <e> | s2 s2 s3 s3 A A eos",
            "Q Q <s> <p> <p> <e> | A A eos",
        ],
    ),
    ("pause", ["Q Q <p> <p> | A A eos", "Q Q <p> <p> | A A eos", "Q Q <p> <p> | A A eos", "Q Q <p> <p> | A A eos"]),
]


def stages(mix: str, epoch: int, stage: int) -> list[int]:
    return [mixed_stage(MIXES[mix], 7, epoch, index, stage, steps) for index, steps in enumerate(NUM_STEPS)]


def laid_out(task: tuple[str, str, int]) -> Layout:
    """One problem of epoch EPOCH, which is at stage 2."""
    method, mix, index = task
    one = make_problem(NUM_STEPS[index])
    own = METHODS[method].num_stages(one, SPEC)
    stage = mixed_stage(MIXES[mix], 7, EPOCH, index, 2, own) if METHODS[method].has_curriculum else 2
    return lay_out(METHODS[method], one, stage, SPEC, MARKERS)


def test_the_stages_of_an_epoch() -> None:
    assert stages("uniform", EPOCH, 2) == GOLDEN_STAGES["uniform"]
    assert stages("replay", EPOCH, 2) == GOLDEN_STAGES["replay"]
    assert stages("replay", EPOCH + 1, 2) != stages("replay", EPOCH, 2)
    assert all(stage <= 2 for stage in stages("replay", EPOCH, 2))


@pytest.mark.parametrize(("method", "expected"), GOLDEN_ROWS)
def test_the_sequences_of_an_epoch(method: str, expected: list[str]) -> None:
    assert [readable(laid_out((method, "uniform", index))) for index in range(4)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
def test_workers_and_ranks_make_no_difference(mix: str) -> None:
    tasks = [(method, mix, index) for method in METHODS for index in range(len(NUM_STEPS))]
    here = [laid_out(task) for task in tasks]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        assert list(workers.map(laid_out, tasks)) == here
    batch = epoch_batches(7, EPOCH, len(here), 24)[0]
    for world in (1, 2):
        geometry = BatchGeometry(24, 6, 24 // 6 // world, world)
        plans = [plan_update([here[i] for i in batch], geometry, rank, "token") for rank in range(world)]
        rows = [row for plan in plans for micro in plan for row in micro.layouts]
        assert sorted(map(str, rows)) == sorted(str(here[i]) for i in batch)
    assert ID["<p>"] in {token for layout in here for token in layout.input_ids}
