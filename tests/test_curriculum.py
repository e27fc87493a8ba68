"""The stage of an epoch, stage mixing and the learning rate: pure functions, compared with their definitions."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coconut_ds.data.sequences import mixed_stage
from coconut_ds.errors import ConfigError
from coconut_ds.methods import METHODS
from coconut_ds.settings import TrainingConfig
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.curriculum import Curriculum, learning_rate, resets_optimizer, schedule_factor


def curriculum(method: str = "coconut", longest: int = 9, **training: Any) -> Curriculum:
    return Curriculum.of(TrainingConfig(**training), METHODS[method], longest)


def run(plan: Curriculum, accuracies: list[float]) -> tuple[list[int], list[int]]:
    """Stages of the epochs and recorded switches of a run with these validation accuracies."""
    stages: list[int] = []
    switches: list[int] = []
    for epoch, accuracy in enumerate(accuracies):
        stages.append(plan.stage(epoch, switches))
        if plan.advances(epoch, switches, accuracy):
            switches.append(epoch + 1)
    return stages, switches


@pytest.mark.parametrize(
    ("longest", "stages"),
    [
        (
            3,
            [0, 0, 1, 1, 2, 2, 3, 3, 3, 3],
        ),  # one stage past the maximum: the third step is removed, the number of thoughts stays
        (2, [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]),  # past the maximum there is no step left to remove
        (1, [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_stages_by_epochs_end_where_nothing_changes_any_more(longest: int, stages: list[int]) -> None:
    plan = curriculum(longest=longest, max_latent_stage=2, epochs_per_stage=2)
    assert [plan.stage(epoch, []) for epoch in range(10)] == stages
    assert plan.last_stage == stages[-1]


def test_stages_by_epochs_ignore_accuracy_and_history() -> None:
    plan = curriculum(max_latent_stage=6, epochs_per_stage=5)
    assert not any(plan.advances(epoch, [], 1.0) for epoch in range(40))
    assert plan.stage(12, [1, 2, 3, 4]) == plan.stage(12, []) == 2


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.has_curriculum])
@pytest.mark.parametrize("rule", [{"advance": "epochs"}, {"advance": "accuracy"}, {"stage_switches": [1, 2]}])
def test_methods_without_curriculum_stay_at_stage_0(method: str, rule: dict[str, Any]) -> None:
    plan = curriculum(method, epochs_per_stage=1, **rule)
    assert run(plan, [1.0] * 5) == ([0] * 5, [])


def test_stages_by_accuracy_follow_it_and_record_when() -> None:
    plan = curriculum(longest=2, max_latent_stage=2, advance="accuracy", advance_at=0.9)
    assert run(plan, [0.2, 0.9, 0.89, 0.95, 1.0, 1.0]) == ([0, 0, 1, 1, 2, 2], [2, 4])


def test_the_least_and_the_largest_number_of_epochs_bound_a_stage() -> None:
    bounds = {"max_latent_stage": 2, "advance": "accuracy", "min_epochs_per_stage": 2, "max_epochs_per_stage": 3}
    assert run(curriculum(longest=2, **bounds), [1.0] * 7) == ([0, 0, 1, 1, 2, 2, 2], [2, 4])
    assert run(curriculum(longest=2, **bounds), [0.0] * 8) == ([0, 0, 0, 1, 1, 1, 2, 2], [3, 6])


@settings(max_examples=60, deadline=None)
@given(
    accuracies=st.lists(st.sampled_from([0.0, 0.5, 0.8, 1.0]), min_size=1, max_size=25),
    least=st.integers(1, 3),
    more=st.none() | st.integers(0, 3),
    last=st.integers(0, 4),
)
def test_every_recorded_stage_ends_for_a_reason_and_the_record_repeats_the_run(
    accuracies: list[float], least: int, more: int | None, last: int
) -> None:
    longest = None if more is None else least + more
    rules = {"advance_at": 0.8, "min_epochs_per_stage": least, "max_epochs_per_stage": longest}
    plan = curriculum(longest=last, max_latent_stage=last, advance="accuracy", **rules)
    stages, switches = run(plan, accuracies)
    for stage, count in Counter(stages).items():
        if stage == last:
            continue
        first = stages.index(stage)
        seen = accuracies[first + least - 1 : first + count]  # the epochs after which the stage could end
        assert not any(accuracy >= 0.8 for accuracy in seen[:-1])
        assert longest is None or count <= longest
        if stage + 1 in stages:
            assert count >= least
            assert seen[-1] >= 0.8 or count == longest
    repeated = curriculum(longest=last, max_latent_stage=last, stage_switches=switches)
    assert run(repeated, [0.0] * len(accuracies)) == (stages, [])


def test_a_resume_needs_only_the_recorded_switches() -> None:
    plan = curriculum(max_latent_stage=3, advance="accuracy", min_epochs_per_stage=2)
    accuracies = [1.0, 0.2, 1.0, 1.0, 1.0, 0.3, 1.0, 0.1]
    stages, switches = run(plan, accuracies)
    assert [plan.stage(epoch, switches) for epoch in range(len(stages))] == stages


def test_a_run_is_solved_in_its_last_stage_only() -> None:
    plan = curriculum(longest=1, max_latent_stage=1, advance="accuracy", stop_at=0.97)
    assert not plan.solved(4, [], 1.0)
    assert not plan.solved(4, [2], 0.96)
    assert plan.solved(4, [2], 0.97)
    assert not plan.solved(1, [2], 1.0)
    assert not curriculum(longest=1, max_latent_stage=1).solved(99, [], 1.0)
    assert curriculum("cot", stop_at=0.97).solved(0, [], 0.97)


def draws(training: TrainingConfig, stage: int, num_steps: int, count: int = 4000) -> Counter[int]:
    return Counter(mixed_stage(training, 3, 5, problem, stage, num_steps) for problem in range(count))


@pytest.mark.parametrize(
    ("key", "last"),
    [("uniform_prob", 6), ("replay_prob", 3)],
    ids=["uniform-over-0-to-the-number-of-steps", "replay-over-0-to-the-stage"],
)
def test_mixed_stages_come_as_often_as_they_should(key: str, last: int) -> None:
    """Stage 3, 6 steps, probability 0.35: each drawn stage has 0.35 / (last + 1), stage 3 the other 0.65 too.

    Counts of N = 4,000 draws have standard deviation sqrt(N p (1 - p)) < 31; five of them are allowed.
    """
    found = draws(TrainingConfig(**{key: 0.35}), stage=3, num_steps=6)
    assert set(found) == set(range(last + 1))
    for stage in range(last + 1):
        p = 0.35 / (last + 1) + (0.65 if stage == 3 else 0)
        assert abs(found[stage] - 4000 * p) < 5 * math.sqrt(4000 * p * (1 - p))


def test_uniform_mixing_reaches_past_and_replay_only_up_to_the_stage() -> None:
    assert set(draws(TrainingConfig(uniform_prob=1.0), stage=1, num_steps=4)) == {0, 1, 2, 3, 4}
    assert set(draws(TrainingConfig(uniform_prob=1.0), stage=5, num_steps=1)) == {0, 1}
    assert set(draws(TrainingConfig(replay_prob=1.0), stage=2, num_steps=0)) == {0, 1, 2}
    assert set(draws(TrainingConfig(replay_prob=1.0), stage=0, num_steps=4)) == {0}
    assert set(draws(TrainingConfig(), stage=2, num_steps=4)) == {2}


def test_a_mixed_stage_depends_only_on_seed_epoch_and_problem() -> None:
    training = TrainingConfig(uniform_prob=0.8)

    def stages(seed: int, epoch: int, order: list[int]) -> dict[int, int]:
        return {problem: mixed_stage(training, seed, epoch, problem, 2, 5) for problem in order}

    one = stages(0, 0, list(range(50)))
    assert stages(0, 0, list(reversed(range(50)))) == one
    assert len(set(one.values())) > 1
    assert stages(1, 0, list(range(50))) != one
    assert stages(0, 1, list(range(50))) != one


def test_the_learning_rate_rises_linearly_then_stays() -> None:
    training = TrainingConfig(lr=2e-3, warmup_steps=4)
    assert [learning_rate(training, done) for done in range(6)] == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3, 2e-3, 2e-3])
    assert learning_rate(TrainingConfig(lr=2e-3), 0) == 2e-3


def test_a_schedule_falls_to_nothing_at_the_end_of_the_run_after_the_warm_up() -> None:
    def factors(schedule: str, warmup: int = 2) -> list[float]:
        training = TrainingConfig(lr_schedule=schedule, warmup_steps=warmup)
        return [schedule_factor(training, done, 6) for done in range(7)]

    assert factors("constant") == [1.0] * 7
    assert factors("linear") == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert factors("cosine") == pytest.approx([1, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])
    assert factors("cosine", warmup=9) == [1.0] * 7


@pytest.mark.parametrize(
    ("rule", "at_start", "same_stage", "new_stage"),
    [("stage", False, False, True), ("epoch", False, True, True), ("never", False, False, False)],
)
def test_optimizer_state_is_reset_as_set(rule: str, at_start: bool, same_stage: bool, new_stage: bool) -> None:
    training = TrainingConfig(reset_optimizer=rule)
    assert resets_optimizer(training, 0, None) is at_start
    assert resets_optimizer(training, 2, 2) is same_stage
    assert resets_optimizer(training, 3, 2) is new_stage


def rates(plan: Curriculum, stages: list[int], switches: list[int], num_batches: int) -> list[float]:
    """Learning rates of all updates of a run with these stages, whose optimizer is reset as set."""
    found, since_reset = [], 0
    for epoch, (stage, before) in enumerate(zip(stages, [None, *stages], strict=False)):
        since_reset = 0 if resets_optimizer(plan.training, stage, before) else since_reset
        for batch in range(num_batches):
            # What the run records later is not known yet.
            known = [switch for switch in switches if switch <= epoch]
            found.append(plan.rate(epoch, known, batch, num_batches, since_reset))
            since_reset += 1
    return found


def slow_rates(training: TrainingConfig, num_updates: list[int], total: list[int]) -> list[float]:
    """For each stage, a warm-up followed by a line to 0, which the stage would reach after ``total`` updates."""
    found = []
    for made, planned in zip(num_updates, total, strict=True):
        line = [(planned - done) / (planned - training.warmup_steps) for done in range(training.warmup_steps, planned)]
        rise = [(1 + done) / training.warmup_steps for done in range(training.warmup_steps)]
        found += [training.lr * factor for factor in [*rise, *line][:made]]
    return found


@pytest.mark.parametrize("reset", ["stage", "never"])
@pytest.mark.parametrize(
    ("rules", "accuracies", "num_updates", "total"),
    [
        # Two epochs of five updates per stage; the last stage lasts until the run ends.
        ({"epochs_per_stage": 2}, [0.0] * 7, [10, 10, 15], [10, 10, 15]),
        ({"stage_switches": (1, 4)}, [0.0] * 7, [5, 15, 15], [5, 15, 15]),
        # By accuracy: stage 0 is planned for three epochs and ends after two, stage 1 takes all three.
        ({"advance": "accuracy", "max_epochs_per_stage": 3}, [0, 1, 0, 0, 0, 0, 0], [10, 15, 10], [15, 15, 10]),
    ],
)
def test_a_schedule_over_stages_begins_again_with_each(
    reset: str, rules: dict[str, Any], accuracies: list[float], num_updates: list[int], total: list[int]
) -> None:
    common = {"lr_schedule": "linear", "warmup_steps": 3, "lr": 0.5, "num_epochs": 7, "max_latent_stage": 2}
    plan = curriculum(longest=2, reset_optimizer=reset, lr_schedule_over="stage", **common, **rules)
    stages, switches = run(plan, accuracies)
    assert rates(plan, stages, switches, 5) == pytest.approx(slow_rates(plan.training, num_updates, total))


def test_a_schedule_over_the_run_does_not_see_stages_or_skipped_epochs() -> None:
    training = TrainingConfig(lr_schedule="linear", lr=0.5, num_epochs=6, epochs_per_stage=1, reset_optimizer="never")
    for first in (0, 2):
        plan = Curriculum.of(training, METHODS["coconut"], 9, first)
        total = (6 - first) * 4
        found = [plan.rate(first + done // 4, [], done % 4, 4, done) for done in range(total)]
        assert found == [0.5 * schedule_factor(training, done, total) for done in range(total)]


def test_a_schedule_over_stages_of_unknown_length_is_refused() -> None:
    known = ["data=modular_sum", "lr_schedule=linear", "lr_schedule_over=stage", "advance=accuracy"]
    with pytest.raises(ConfigError, match=r"set training\.max_epochs_per_stage, or lr_schedule_over=run"):
        compose_config(known)
    for more in ("max_epochs_per_stage=3", "stage_switches=[1,2]", "method=cot"):
        assert compose_config([*known, more]).training.lr_schedule_over == "stage"
