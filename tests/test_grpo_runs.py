"""Runs with ``objective=grpo``: they learn, resume exactly, and refuse what cannot work with a clear message."""

import os

import pytest
import torch
from making_training import column, record, run_left_alone_and_stopped, train
from torch_engine import DROPOUT, TorchEngine, run_folder, tiny_experiment

from coconut_ds.distributed.state_file import write_state
from coconut_ds.errors import CheckpointError, ConfigError, NonFiniteError, RewardError
from coconut_ds.runs.attempts import Start
from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.folder import ENGINE
from coconut_ds.runs.resume_state import Position, ResumeState, Scores
from coconut_ds.settings.compose import compose_config
from coconut_ds.training import launch
from coconut_ds.training.engine import Engine
from coconut_ds.training.engine_file import read_engine_file
from coconut_ds.training.engine_state import DIRECTIONS
from coconut_ds.training.iterations import start_notes

GRPO = ("objective=grpo", "replay_prob=0", "grpo.num_generations=4", "warmup_steps=0", "lr=1e-2")
BREVITY = "grpo.reward=making_rewards:brevity"


def test_a_run_that_was_stopped_and_continued_is_the_run_left_alone(tmp_path):
    """Several updates for each sampling, from a model with dropout, which rollouts and updates do not use; the KL
    divergence is from the first start, and the noise follows weights that are older than the checkpoint."""
    more = (
        *GRPO,
        BREVITY,
        "grpo.num_iterations=2",
        "grpo.steps_per_generation=2",
        DROPOUT,
        "num_epochs=2",
        "size.train=16",
    )
    more = (*more, "grpo.exploration=svp", "grpo.svp_renew=3")
    whole, stopped, engine = run_left_alone_and_stopped(tmp_path, *more, stops=(1, 2))
    assert len(engine.rates) == 4 * 4
    assert record(stopped) == record(whole)
    ends = [one.checkpoint(2) for one in (whole, stopped)]
    for part in ("model.safetensors", "coconut.json"):
        here, there = ((end / part).read_bytes() for end in ends)
        assert here == there, part
    assert column(whole, "train/stage") == [3] * 4
    for name in ("reward", "mixed_groups", "kl", "clip_fraction", "entropy", "completion_length", "completions_ended"):
        assert len(column(whole, f"train/{name}")) == 4, name
    assert column(whole, "train/kl")[-1] > column(whole, "train/kl")[0] > 0
    assert max(column(whole, "train/clip_fraction")) > 0


class FailsLater(TorchEngine):
    """Its sixth update fails: with four updates for each sampling, the second one of the second iteration."""

    def update(self, batches, lr, asked_to_stop=lambda: False):
        if len(self.rates) == 5:
            raise NonFiniteError("loss is nan, not finite")
        return super().update(batches, lr, asked_to_stop)


def test_a_run_that_fails_between_the_updates_of_an_iteration_continues_from_its_last_checkpoint(tmp_path):
    """The message does not claim that the weights are unchanged, and the run becomes the run left alone."""
    more = (*GRPO, BREVITY, "grpo.num_iterations=2", "grpo.steps_per_generation=2", "num_epochs=1")
    whole, failed = run_folder(tmp_path / "whole"), run_folder(tmp_path / "failed")
    train(whole, *more, "save_every_steps=1")
    with pytest.raises(NonFiniteError) as caught:
        train(failed, *more, "save_every_steps=1", engine_class=FailsLater)
    assert "update 2 (epoch 1): optimizer update 2 of the 4 of this iteration: loss is nan" in str(caught.value)
    assert "changed the weights in memory, so the same command continues from the last checkpoint" in str(caught.value)
    assert "unchanged" not in str(caught.value)
    assert failed.checkpoints() == [failed.checkpoint(0, 1)]
    train(failed, *more, "save_every_steps=1")
    assert record(failed) == record(whole)
    weights = [(each.checkpoint(1) / "model.safetensors").read_bytes() for each in (failed, whole)]
    assert weights[0] == weights[1]


class OnlyDirections(Engine):
    """An engine that loads no other state than the weights that the noise on values follows."""

    def __init__(self, loop, config, geometry, ranks, load_universal=False):
        self._loop, self._ranks = loop, ranks

    def load_state(self, folder, same_ranks):
        pass


@pytest.mark.parametrize("saved_by", [1, 2])
def test_the_weights_that_noise_follows_are_resumed_on_any_number_of_ranks(saved_by, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "Engine", OnlyDirections)
    monkeypatch.setattr(launch, "convert_state", lambda folder, out: out.mkdir())
    run = tiny_experiment(*GRPO, BREVITY, "grpo.exploration=svp", "deepspeed=zero1")
    file = tmp_path / "checkpoint_1" / ENGINE / DIRECTIONS
    state = ResumeState(Position(), Scores(), 0, world_size=saved_by)
    start = Start(tmp_path, False, tmp_path / "checkpoint_1", state)
    with pytest.raises(CheckpointError, match=f"{DIRECTIONS}: is missing"):
        launch._start_engine(run, start, Fence(tmp_path), lambda line: None)
    saved = [torch.randn(16, 16)]
    file.parent.mkdir(parents=True)
    write_state(saved, file)
    found = launch._start_engine(run, start, Fence(tmp_path), lambda line: None)._loop.value_directions
    assert torch.equal(found.weights[0], saved[0])
    basis = found._bases[0]
    torch.testing.assert_close(basis.left * basis.values @ basis.right, saved[0])


def test_the_reward_rises(tmp_path):
    folder = run_folder(tmp_path)
    train(folder, *GRPO, BREVITY, "grpo.sigma=0.2", "num_epochs=4", "keep_last=1")
    rewards = column(folder, "train/reward")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 1


def test_groups_whose_rewards_are_equal_change_nothing(tmp_path):
    folder = run_folder(tmp_path)
    start = {name: value.clone() for name, value in tiny_experiment(*GRPO).loop().model.state_dict().items()}
    _, engine = train(folder, *GRPO, "grpo.reward=making_rewards:constant", "num_epochs=1")
    assert engine.rates == []
    assert all(torch.equal(value, start[name]) for name, value in engine.model_state().items())
    assert column(folder, "train/mixed_groups") == column(folder, "train/loss") == [0.0] * 3
    assert column(folder, "train/kl") == []


def test_a_reward_that_fails_names_problem_and_function_and_loses_nothing(tmp_path):
    folder = run_folder(tmp_path)
    for name, words in (
        ("raises", r"making_rewards:raises: the function raised KeyError: 'edges'; problem: '.+', text"),
        ("not_a_number", "returned nan, expected a finite number"),
        ("text", "returned '1.0', expected a finite number"),
    ):
        with pytest.raises(RewardError, match=words):
            train(folder, *GRPO, f"grpo.reward=making_rewards:{name}")
    assert not folder.checkpoints()
    os.environ["FAILING_REWARD_CALLS"] = "70"
    try:
        with pytest.raises(RewardError, match="raised ZeroDivisionError"):
            train(folder, *GRPO, "grpo.reward=making_rewards:raises_later")
    finally:
        del os.environ["FAILING_REWARD_CALLS"]
    (saved,) = folder.checkpoints()
    assert saved == folder.checkpoint(0, 2)
    assert len(column(folder, "train/reward")) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=no_cot"], r"exploration=gaussian explores in thoughts, and method.kind=no_cot has no thoughts"),
        (["method=pause"], "method.kind=pause has no thoughts"),
        (["c_thought=0"], "with training.c_thought=0 there are none"),
        (["method=coconut_reversed"], "the model decides when to think; set method=coconut"),
        (["training.loss_reduction=reference"], "objective.grpo.loss_type says how"),
        (["training.uniform_prob=0.1"], "training.uniform_prob=0.1 mixes stages"),
        (["advance=accuracy"], r"training.advance=accuracy ends stages, .* last stage; set training.advance=epochs"),
        (["training.stage_switches=[1]"], r"stage_switches=\[1\] begins stages, .*; set training.stage_switches=null"),
        (
            ["grpo.exploration=svp", "grpo.sigma=0.3"],
            "grpo.sigma=0.3: .*exploration=svp does not read this; set objective.grpo.exploration=gaussian, or the "
            "default, objective.grpo.sigma=0.6",
        ),
        (["grpo.dropout=0.1"], "dropout=0.1: .*exploration=gaussian does not read this; set .*exploration=dropout"),
        (["grpo.svp_scale=0.1"], "svp_scale=0.1: .*exploration=gaussian does not read this; set .*exploration=svp"),
        (["grpo.svp_renew=3", "grpo.exploration=none"], "svp_renew=3: .*exploration=none does not read this"),
        (
            ["data=prosqa_symbolic", "advance=epochs", "grpo.max_completion_length=4"],
            "max_completion_length=4 has no effect with data.format=symbolic, whose answers are one token",
        ),
        (
            ["grpo.epsilon=0.3", "grpo.epsilon_high=0.4"],
            r"epsilon=0.3 has no effect with one update for each sampling.*num_iterations=2(.|\n)*epsilon_high=null",
        ),
        (["grpo.num_generations=1"], "num_generations"),
        (["grpo.temperature=0"], "temperature"),
        (["grpo.reward=exact"], "reward"),
        (
            ["objective=likelihood", "grpo.beta=0.5"],
            "objective.grpo.beta=0.5: objective.kind=likelihood does not read this; set objective=grpo",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        compose_config(["objective=grpo", *overrides])


def test_settings_of_the_clipping_need_several_updates_for_each_sampling():
    for key in ("num_iterations", "steps_per_generation"):
        assert compose_config(["objective=grpo", "grpo.epsilon=0.3", f"grpo.{key}=2"]).objective.grpo.epsilon == 0.3


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("no_such_module:reward", r"the module no_such_module cannot be imported \(ModuleNotFoundError"),
        ("making_rewards:absent", "making_rewards has no function named absent"),
        ("making_rewards:NOT_CALLABLE", "has a int named NOT_CALLABLE"),
    ],
)
def test_a_reward_that_is_not_there_is_refused_before_anything_is_loaded(reward, words):
    with pytest.raises(ConfigError, match=words):
        tiny_experiment(*GRPO, f"grpo.reward={reward}")


def test_an_unusual_start_is_named(tmp_path):
    """No checkpoint; one that thinks more often than this run; the run's own number of thoughts."""
    assert "starts from random weights" in start_notes(tiny_experiment(*GRPO))[0]
    folder = run_folder(tmp_path)
    train(folder, "num_epochs=3")
    start = f"load_model_path={folder.checkpoint(3)}"
    assert start_notes(tiny_experiment(*GRPO, start)) == []
    (note,) = start_notes(tiny_experiment(*GRPO, start, "max_latent_stage=1"))
    assert note.endswith("and this run has 1; training.c_thought and training.max_latent_stage set the number")
    assert start_notes(tiny_experiment()) == []


def test_the_start_is_not_kept_where_shards_are_not_plain(tmp_path):
    path = tmp_path / "own.json"
    path.write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}')
    read_engine_file(compose_config(["objective=grpo", "grpo.beta=0", f"deepspeed.config={path}"]))
    with pytest.raises(ConfigError, match="neither with weights on NVMe nor with ZeRO"):
        read_engine_file(compose_config(["objective=grpo", f"deepspeed.config={path}"]))


def test_adapters_start_as_the_model_without_them(tmp_path):
    """Only adapters are kept for the KL divergence, and in their place the model is the one without adapters."""
    more = (*GRPO, BREVITY, "lora.rank=2", "num_epochs=1")
    _, engine = train(run_folder(tmp_path), *more)
    kept, everything = (
        sum(each.numel() for each in engine.start._others),
        sum(p.numel() for p in engine.loop.parameters()),
    )
    assert kept < everything / 4
    plain = tiny_experiment(*GRPO).loop().eval()
    ids, engine.loop.training = torch.tensor([[3, 4, 5]]), False
    engine.train(False)
    with torch.no_grad():
        wanted = plain.model(ids).logits
        assert not torch.allclose(engine.loop.model(ids).logits, wanted, atol=1e-4)
        with engine.at_start():
            torch.testing.assert_close(engine.loop.model(ids).logits, wanted)
