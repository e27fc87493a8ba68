"""``data.schedule``: when phases end, what they train on, and that a run killed at a switch is the run left alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from making_training import Scripted, column, record, train
from torch_engine import DROPOUT, TorchEngine, run_folder, tiny_experiment

from coconut_ds.data.sources import open_sources
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import ConfigError, DataError
from coconut_ds.methods import METHODS
from coconut_ds.runs.folder import ENGINE, RESUME_STATE
from coconut_ds.runs.resume_state import Position, ResumeState, Scores
from coconut_ds.settings import TrainingConfig
from coconut_ds.settings.compose import compose_config
from coconut_ds.settings.data_schedule import phases_of
from coconut_ds.training.curriculum import Curriculum
from coconut_ds.training.data_schedule import DataSchedule, record_switches
from coconut_ds.training.experiment import Experiment

BY_EPOCHS = "data.schedule=[{num_terms: 2, epochs: 1, size: {train: 12}}, {group: permutation_product, epochs: 1}]"
BOTH = "data.schedule=[{num_terms: 2, epochs: 2, mastery: 0.9}, {num_terms: 3, mastery: 0.8}]"


def phases(schedule: str, *overrides: str) -> DataSchedule:
    return DataSchedule(phases_of(compose_config(["data=modular_sum", schedule, *overrides]).data))


def simulated(schedule: DataSchedule, curriculum: Curriculum, shares: Sequence[float]) -> Position:
    """The position of a run in which these shares of the validation problems were right, epoch by epoch."""
    position = Position(epoch=schedule.first_epoch)
    for share in shares:
        record_switches(position, schedule, curriculum, share, share)
        position.next_epoch(curriculum.stage(position.epoch, position.stage_switches))
    return position


@pytest.mark.parametrize(
    ("schedule", "first", "shares", "expected"),
    [
        (BY_EPOCHS, 0, [1.0] * 5, [0, 1, 2, 2, 2]),
        (BY_EPOCHS, 7, [0.0] * 3, [0, 1, 2]),
        (BOTH, 0, [0.0, 0.89, 0.79, 0.8, 1.0], [0, 0, 1, 1, 2]),
        (BOTH, 3, [0.9, 0.9, 0.9], [0, 1, 2]),
        (BOTH, 0, [0.0] * 6, [0, 0, 1, 1, 1, 1]),
    ],
)
def test_phases_end_by_epochs_or_by_mastery_whichever_comes_first(
    schedule: str, first: int, shares: list[float], expected: list[int]
) -> None:
    plan = DataSchedule(phases(schedule).phases, first)
    position = simulated(plan, Curriculum.of(TrainingConfig(), METHODS["cot"], 3), shares)
    epochs = range(first, first + len(shares))
    assert [plan.phase(epoch, position.data_switches) for epoch in epochs] == expected
    # What a resume knows at an epoch says the same.
    known = [[switch for switch in position.data_switches if switch <= epoch] for epoch in epochs]
    assert [plan.phase(epoch, switches) for epoch, switches in zip(epochs, known, strict=True)] == expected


def test_stages_and_the_end_of_the_run_wait_for_the_runs_own_problems() -> None:
    """Two phases of mastered problems, then at least two epochs of a stage, counted from the run's own problems."""
    rules = {"advance": "accuracy", "min_epochs_per_stage": 2, "max_latent_stage": 1, "stop_at": 0.9}
    curriculum = Curriculum.of(TrainingConfig(**rules), METHODS["coconut"], 1)
    position = simulated(phases(BOTH), curriculum, [1.0] * 4)
    assert (position.data_switches, position.stage_switches, position.solved) == ([1, 2], [4], False)
    assert simulated(phases(BOTH), curriculum, [1.0] * 5).solved
    # The share that ends a stage is less than what the second entry asks for.
    eager = replace(curriculum, training=curriculum.training.model_copy(update={"advance_at": 0.5, "stop_at": None}))
    waiting = simulated(phases(BOTH), eager, [1.0, 0.6, 0.6, 0.6])
    assert (waiting.data_switches, waiting.stage_switches) == ([1], [])


def test_an_entry_changes_what_it_names_and_a_group_changes_everything() -> None:
    config = compose_config(["data=modular_sum", "num_terms=7", "modulus=5", "size.train=99", BY_EPOCHS])
    first, second = phases_of(config.data)
    assert (first.data.num_terms, first.data.modulus, first.data.size.train) == (2, 5, 12)
    assert first.data.size.valid == config.data.size.valid
    option = compose_config(["data=permutation_product"]).data
    assert (second.data.kind, second.data.num_terms) == ("permutation_product", option.num_terms)
    assert second.data.size == option.size
    assert not first.data.schedule
    # What is written to config.yaml needs no option any more.
    assert "group" not in config.data.schedule[1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{num_terms: 2}", r"data\.schedule\[1\]: nothing says when it ends; add epochs"),
        ("{num_terms: 1, epochs: 1}", r"data\.schedule\[1\]\.num_terms: .*greater than or equal to 2"),
        ("{terms: 2, epochs: 1}", r"data\.schedule\[1\]: found terms, expected epochs, mastery, group or keys"),
        ("{format: symbolic, epochs: 1}", r"data\.schedule\[1\]: found format, expected"),
        ("{epochs: 1, mastery: 2.0}", r"data\.schedule\[1\]\.mastery: .*less than or equal to 1"),
        ("{group: nothing, epochs: 1}", r"data\.schedule\[1\]\.group: found 'nothing', expected an option of data: "),
        ("{group: prosqa_symbolic, epochs: 1}", r"group=prosqa_symbolic: has format=symbolic, but the run has text"),
        ("{kind: file, epochs: 1}", r"data\.schedule\[1\]: problems of files need train_path and val_path"),
    ],
)
def test_entries_that_cannot_be_used_are_refused_with_their_place(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["data=modular_sum", f"data.schedule=[{{epochs: 1}}, {entry}]"])


def test_an_entry_whose_problems_cannot_be_made_is_named() -> None:
    config = compose_config(["data=modular_sum", "data.schedule=[{num_terms: 2, epochs: 1}]"])
    with pytest.raises(DataError, match=r"data\.schedule\[0\]: data\.size\.valid=\d+: .*set data\.size\.valid="):
        open_sources(config.data, 0)


def test_mastery_is_refused_where_accuracy_does_not_show_it() -> None:
    symbolic = ["data=prosqa_symbolic", "data.schedule=[{num_nodes: [8, 8], mastery: 0.9}]"]
    with pytest.raises(ConfigError, match=r"mastery=0\.9 with data\.format=symbolic.*set epochs instead"):
        compose_config(symbolic)
    assert phases_of(compose_config([*symbolic, "method=cot"]).data)[0].mastery == 0.9


SMALL_GROUP = BY_EPOCHS.replace("epochs: 1}]", "epochs: 1, size: {train: 20, valid: 6}}]")
SCHEDULED = (DROPOUT, "num_epochs=4", "save_every_steps=2", "lr_schedule=linear", SMALL_GROUP)
"""Two updates in the first epoch, then three in each; the problems of the second epoch are of another kind."""


class Died(BaseException):
    """Stands for the death of a process."""


def dying(at: int) -> type[TorchEngine]:
    """An engine whose process dies in the update number ``at`` of the launch, counted from 0."""

    class Dying(TorchEngine):
        def update(self, *arguments: Any, **options: Any) -> Any:
            if len(self.rates) == at:
                raise Died
            return super().update(*arguments, **options)

    return Dying


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = run_folder(tmp_path_factory.mktemp("undisturbed"))
    train(folder, *SCHEDULED)
    return folder


def test_each_phase_trains_and_validates_on_its_own_problems(undisturbed: Any) -> None:
    experiment = tiny_experiment(*SCHEDULED)
    assert column(undisturbed, "eval/data_phase") == [0, 1, 2, 2]
    assert column(undisturbed, "data/switches") == [[1], [1, 2]]
    updates = [line["epoch"] for line in record(undisturbed) if "train/loss" in line]
    assert updates == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    shown = [json.loads(path.read_text()) for path in sorted(undisturbed.path.glob("samples/*.json"))]
    for samples, problems in zip(shown, [*experiment.earlier, experiment.problems, experiment.problems], strict=True):
        assert [one["question"] for one in samples] == [problem.question for problem in problems.valid[: len(samples)]]
    tokenizer = experiment.backbone.tokenizer
    for problems in (*experiment.earlier, experiment.problems):
        assert not any(tokenizer.unk_token_id in one.question for one in problems.train(0))
    state = ResumeState.read(undisturbed.checkpoint(4) / ENGINE / RESUME_STATE)
    assert (state.position.data_switches, state.scores.best_phase) == ([1, 2], 2)


@pytest.mark.parametrize("deaths", [[2], [4, 1]], ids=str)
def test_a_run_killed_at_a_switch_of_problems_is_the_run_left_alone(
    tmp_path: Any, undisturbed: Any, deaths: list[int]
) -> None:
    """Updates 3 and 6 are the first ones on other problems. What was made after the last checkpoint is repeated."""
    folder = run_folder(tmp_path)
    for at in deaths:
        with pytest.raises(Died):
            train(folder, *SCHEDULED, engine_class=dying(at))
    train(folder, *SCHEDULED)
    assert record(folder) == record(undisturbed)
    for part in ("model.safetensors", "coconut.json"):
        here, there = ((one.checkpoint(4) / part).read_bytes() for one in (folder, undisturbed))
        assert here == there, part


def test_a_phase_that_is_mastered_ends(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Scripted([0.0, 0.9, 0.7, 0.8, 0.0])
    monkeypatch.setattr(Experiment, "evaluator", lambda self: evaluator)
    folder = run_folder(tmp_path)
    position, _ = train(folder, "num_epochs=5", "data.schedule=[{num_terms: 2, mastery: 0.8, epochs: 9}]")
    assert column(folder, "eval/data_phase") == [0, 0, 1, 1, 1]
    assert position.data_switches == [2]


def test_all_ranks_have_the_same_problems() -> None:
    one, other = (tiny_experiment(SMALL_GROUP, ranks=Ranks(rank, size)) for rank, size in ((0, 1), (1, 2)))
    for mine, theirs in zip((*one.earlier, one.problems), (*other.earlier, other.problems), strict=True):
        assert (mine.valid, mine.texts(3)) == (theirs.valid, theirs.texts(3))
    assert one.backbone.tokenizer.get_vocab() == other.backbone.tokenizer.get_vocab()


def test_a_run_without_a_schedule_writes_what_older_versions_wrote(tmp_path: Any) -> None:
    path = tmp_path / RESUME_STATE
    ResumeState(Position(), Scores(), 0, 1).write(path)
    assert not any(name in path.read_text() for name in ("data_switches", "best_phase"))
    assert ResumeState.read(path) == ResumeState(Position(), Scores(), 0, 1)
    ResumeState(Position(data_switches=[2]), Scores(best_phase=1), 0, 1).write(path)
    assert ResumeState.read(path).position.data_switches == [2]


def test_the_best_checkpoint_is_of_the_latest_phase() -> None:
    scores = Scores()
    assert scores.record(0, 0.9, phase=0)
    assert scores.record(0, 0.2, phase=1)
    assert not scores.record(0, 0.2, phase=1)
