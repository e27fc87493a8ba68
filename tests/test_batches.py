"""Global batches, micro batches, ranks and weights: each problem once, each target with the right weight."""

import math
import random
import re
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coconut_ds.distributed.launcher import is_first_on_machine, launched_rank, launched_ranks
from coconut_ds.errors import ConfigError
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.settings import TrainingConfig
from coconut_ds.training.batches import BatchGeometry, MicroBatch, epoch_batches, plan_update


def derive(world: int = 1, **training: Any) -> BatchGeometry:
    return BatchGeometry.derive(TrainingConfig(**training), world)


@pytest.mark.parametrize(
    ("wanted", "micro", "accumulation", "world", "expected"),
    [
        (128, 32, None, 1, (128, 32, 4, 1)),
        (128, 32, None, 4, (128, 32, 1, 4)),
        (128, 32, None, 8, (128, 16, 1, 8)),  # a rank's share is smaller than a micro batch
        (96, 16, None, 3, (96, 16, 2, 3)),
        (None, 32, 3, 2, (192, 32, 3, 2)),
        (None, 32, None, 2, (64, 32, 1, 2)),
        (128, 32, 2, 2, (128, 32, 2, 2)),
    ],
)
def test_what_is_left_out_follows_from_the_rest(
    wanted: int | None, micro: int, accumulation: int | None, world: int, expected: tuple[int, int, int, int]
) -> None:
    given_keys = {"batch_size_training": micro, "gradient_accumulation_steps": accumulation}
    geometry = derive(world, global_batch_size=wanted, **given_keys)
    assert geometry == BatchGeometry(*expected)
    assert expected[0] == expected[1] * expected[2] * expected[3]
    assert [int(number) for number in re.findall(r"\d+", geometry.describe())] == list(expected)


def test_micro_batches_of_sampled_completions_do_not_depend_on_the_number_of_problems() -> None:
    for problems, micro, world in ((64, 32, 8), (32, 128, 1), (48, 32, 1), (48, 5, 2)):
        found = BatchGeometry.derive(
            TrainingConfig(global_batch_size=problems, batch_size_training=micro), world, samples=True
        )
        assert found == BatchGeometry(problems, micro, None, world)
        assert [int(number) for number in re.findall(r"\d+", found.describe())] == [problems, micro, world]
    left_out = TrainingConfig(global_batch_size=None, batch_size_training=8)
    assert BatchGeometry.derive(left_out, 4, samples=True) == BatchGeometry(32, 8, None, 4)
    with pytest.raises(ConfigError, match=r"=50 does not divide among 8 ranks; set .*=48 or 56"):
        BatchGeometry.derive(TrainingConfig(global_batch_size=50), 8, samples=True)
    with pytest.raises(ConfigError, match="gradient_accumulation_steps=2: the number of passes"):
        BatchGeometry.derive(TrainingConfig(gradient_accumulation_steps=2), 1, samples=True)


def test_contradictory_batch_sizes_are_refused_with_their_product() -> None:
    with pytest.raises(ConfigError) as caught:
        derive(3, global_batch_size=128, batch_size_training=32, gradient_accumulation_steps=2)
    assert "training.global_batch_size=128, but" in str(caught.value)
    assert "batch_size_training=32 × gradient_accumulation_steps=2 × ranks=3 = 192" in str(caught.value)


@pytest.mark.parametrize(("wanted", "world", "works"), [(128, 3, [96, 192]), (2, 8, [8]), (9, 4, [8, 12])])
def test_a_global_batch_that_ranks_cannot_share_is_refused_with_the_nearest_that_they_can(
    wanted: int, world: int, works: list[int]
) -> None:
    with pytest.raises(ConfigError, match=f"={wanted} does not divide among {world} ranks") as caught:
        derive(world, global_batch_size=wanted, batch_size_training=32)
    advice = str(caught.value).split("set training.global_batch_size=")[1]
    assert [int(number) for number in advice.split(" or ")] == works
    for number in works:
        assert derive(world, global_batch_size=number, batch_size_training=32).global_batch_size == number


def test_a_micro_batch_that_does_not_divide_is_refused_with_all_that_do() -> None:
    with pytest.raises(ConfigError, match=r"batch_size_training=5 does not divide the 12 problems per rank") as caught:
        derive(2, global_batch_size=24, batch_size_training=5)
    works = [int(number) for number in str(caught.value).split("to one of ")[1].split(", ")]
    assert works == [size for size in range(1, 25) if 12 % size == 0]
    for size in works:
        assert derive(2, global_batch_size=24, batch_size_training=size).micro_batch_size == size


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_holds_every_problem_once_and_keeps_the_last_partial_batch(
    count: int, size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(seed, epoch, count, size)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert [len(batch) for batch in batches] == [min(size, count - start) for start in range(0, count, size)]
    assert batches == epoch_batches(seed, epoch, count, size)


def test_order_changes_with_seed_and_epoch_but_not_with_the_size_of_a_batch() -> None:
    def order(seed: int, epoch: int, size: int) -> list[int]:
        return [index for batch in epoch_batches(seed, epoch, 40, size) for index in batch]

    assert order(0, 0, 8) == order(0, 0, 40) != list(range(40))
    assert order(0, 0, 8) != order(0, 1, 8) != order(1, 0, 8) != order(0, 0, 8)


def layout(name: int, num_targets: int, num_thoughts: int) -> Layout:
    """A layout whose first token identifies it."""
    context = [name, *[0] * num_thoughts]
    ids = [*context, *[1] * num_targets]
    labels = [IGNORE] * len(context) + [1] * num_targets
    return Layout(ids, labels, 1 if num_thoughts else len(ids), num_thoughts)


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[Layout], BatchGeometry]:
    micro, accumulation, world = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = micro * accumulation * world
    shapes = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=size))
    layouts = [layout(name, targets, thoughts) for name, (targets, thoughts) in enumerate(shapes)]
    return layouts, BatchGeometry(size, micro, accumulation, world)


def plans(layouts: list[Layout], geometry: BatchGeometry, reduction: str) -> list[list[MicroBatch]]:
    """The micro batches of each rank."""
    return [plan_update(layouts, geometry, rank, reduction) for rank in range(geometry.world_size)]


many = settings(max_examples=150, deadline=None)


@many
@given(update=updates(), reduction=st.sampled_from(["token", "reference"]))
def test_each_problem_counts_once_and_the_weights_of_all_targets_sum_to_one(
    update: tuple[list[Layout], BatchGeometry], reduction: str
) -> None:
    layouts, geometry = update
    batches = [batch for plan in plans(layouts, geometry, reduction) for batch in plan]
    rows = [row for batch in batches for row in zip(batch.layouts, batch.weights, strict=True)]
    assert sorted(item.input_ids[0] for item, weight in rows if weight > 0) == list(range(len(layouts)))
    assert all(weight >= 0 for _, weight in rows)
    assert math.isclose(sum(weight * item.num_targets for item, weight in rows), 1)
    assert all(1 <= len(batch.layouts) <= geometry.micro_batch_size for batch in batches)


@many
@given(update=updates())
def test_all_ranks_make_the_same_passes_and_no_row_needs_more(update: tuple[list[Layout], BatchGeometry]) -> None:
    layouts, geometry = update
    for step in zip(*plans(layouts, geometry, "token"), strict=True):  # strict: as many micro batches on every rank
        most = max(item.num_thoughts for batch in step for item in batch.layouts)
        assert {batch.num_thoughts for batch in step} == {most}


@many
@given(update=updates(), seed=st.integers(0, 99))
def test_the_weighted_sum_is_the_mean_that_the_reduction_names(
    update: tuple[list[Layout], BatchGeometry], seed: int
) -> None:
    """Random token losses: ``token`` is their mean, ``reference`` the mean over micro batches of their means."""
    layouts, geometry = update
    numbers = random.Random(seed)
    losses = [[numbers.random() for _ in range(item.num_targets)] for item in layouts]

    def weighted(batch: MicroBatch) -> float:
        rows = zip(batch.layouts, batch.weights, strict=True)
        return sum(weight * sum(losses[item.input_ids[0]]) for item, weight in rows)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    found = {
        reduction: sum(weighted(batch) for plan in plans(layouts, geometry, reduction) for batch in plan)
        for reduction in ("token", "reference")
    }
    starts = range(0, len(layouts), geometry.micro_batch_size)
    micro_batches = [list(chain(*losses[start : start + geometry.micro_batch_size])) for start in starts]
    assert math.isclose(found["token"], mean(list(chain(*losses))))
    assert math.isclose(found["reference"], mean([mean(batch) for batch in micro_batches]))


@many
@given(update=updates(), reduction=st.sampled_from(["token", "reference"]))
def test_all_views_of_a_problem_are_at_the_same_row_of_the_same_micro_batch(
    update: tuple[list[Layout], BatchGeometry], reduction: str
) -> None:
    """And the rows' shares make a mean over the problems (``token``), or over the micro batches' means."""
    layouts, geometry = update
    others = [Layout([row, 7, 7], [-100, 7, 7], 3, 0) for row in reversed(range(len(layouts)))]
    total, shares = 0.0, {}
    for rank in range(geometry.world_size):
        first = plan_update(layouts, geometry, rank, reduction)
        second = plan_update(others, geometry, rank, reduction, like=layouts)
        for one, other in zip(first, second, strict=True):
            assert one.rows.tolist() == other.rows.tolist() == [item.input_ids[0] for item in one.layouts]
            assert [item.input_ids[0] for item in other.layouts] == [len(layouts) - 1 - row for row in one.rows]
            assert (one.share, one.num_thoughts >= 0, other.num_thoughts) == (other.share, True, 0)
            total += one.share * len(one.rows)
            shares |= dict.fromkeys(one.rows.tolist(), one.share) if one.share else {}
    assert abs(total - 1) < 1e-9
    assert set(shares) == set(range(len(layouts)))
    assert reduction == "reference" or set(shares.values()) == {1 / len(layouts)}


def test_the_problems_of_an_update_do_not_depend_on_the_number_of_ranks() -> None:
    layouts = [layout(name, 1 + name % 3, name % 2) for name in range(12)]
    found = []
    for world in (1, 2, 3, 4):
        geometry = derive(world, global_batch_size=12, batch_size_training=1)
        batches = [batch for plan in plans(layouts, geometry, "token") for batch in plan]
        rows = [row for batch in batches for row in zip(batch.layouts, batch.weights, strict=True)]
        found.append(sorted((item.input_ids[0], weight) for item, weight in rows if weight))
    assert found == [found[0]] * 4


def test_variables_without_a_rank_are_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables left in a shell neither change the number of ranks nor silence the process."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (launched_ranks(), launched_rank(), is_first_on_machine()) == (1, 0, True)
    monkeypatch.setenv("RANK", "1")
    assert (launched_ranks(), launched_rank(), is_first_on_machine()) == (3, 1, False)
