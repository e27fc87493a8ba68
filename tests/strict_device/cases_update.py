"""Whole updates and validations: batches from the preparing thread, passes, the optimizer's step, and their syncs."""

import math
from types import SimpleNamespace

import pytest
import torch
from making_layouts import MARKERS
from making_training import AskedToStop
from torch_engine import tiny_config, tiny_experiment

import strict_device
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import NonFiniteError
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.runs.resume_state import Position
from coconut_ds.settings.model import LoraConfig
from coconut_ds.training.batches import BatchGeometry, plan_update
from coconut_ds.training.prefetch import Prepared, prepared_ahead
from coconut_ds.training.progress_bar import ProgressBar
from coconut_ds.training.trainer import Trainer
from strict_device.batches import SHAPES, layout_of
from strict_device.engines import ZeroOptimizer, make_engine

DEVICE = strict_device.device()
AN_UPDATE = {0: (1, 2), 1: (1, 1), 2: (1, 1), 3: (1, 1)}
"""Host syncs of an update, by ZeRO stage: reads, and copies to the device. The copies are constants of DeepSpeed's."""


def prepared_batches(micro_batches: int = 2) -> Prepared:
    """Micro batches of two rows, made by the preparing thread."""
    layouts = [layout_of(*shape) for shape in SHAPES * micro_batches][: 2 * micro_batches]
    collator = Collator.for_device(DEVICE, 0, None, 96)

    def prepare(indices) -> Prepared:
        plan = plan_update(layouts, BatchGeometry(len(layouts), 2, micro_batches, 1), 0, "token")
        return Prepared([], [collator(one.layouts, one.weights, one.num_thoughts) for one in plan], 0)

    return next(prepared_ahead(prepare, [[0]], DEVICE))


@pytest.fixture
def engine_of(syncs, monkeypatch):
    """Makes an engine for a ZeRO stage, and further overrides of the configuration."""

    def make(stage: int, *overrides: str):
        loop = LatentLoop(strict_device.make_model("llama"), defer_gradients=False)
        return make_engine(monkeypatch, syncs, loop, tiny_config(f"deepspeed=zero{stage}", *overrides))

    return make


@pytest.mark.parametrize("stage", AN_UPDATE)
def test_syncs_of_an_update(syncs, engine_of, stage):
    """One read in this project's code, for loss, norm and requests to stop. Micro batches add none: the stand-in
    refuses syncs in their passes, and they move in copies that nothing waits for."""
    engine = engine_of(stage)
    for micro_batches in (1, 2):
        batches = prepared_batches(micro_batches).micro_batches
        assert len(batches) == micro_batches
        with syncs.refused():
            assert {batch.to(DEVICE).inputs.prefix_ids.device for batch in batches} == {DEVICE}
        with syncs.counted() as counted:
            result = engine.update(batches, 1e-3, lambda: True)
        print(counted)
        assert (counted.reads, counted.copies) == AN_UPDATE[stage]
        assert [place for place in counted.places if place.startswith("training/step_numbers.py")]
        assert counted.total <= 3
        assert math.isfinite(result.loss)
    with syncs.refused():
        engine.reset_optimizer()


def test_the_numbers_are_read_once_whatever_deepspeed_asks(syncs, engine_of):
    """Without ``StepNumbers`` in between, DeepSpeed's decisions alone are more reads than this."""
    engine = engine_of(2)
    parameters = list(engine._engine.module.parameters())
    plain = ZeroOptimizer(torch.optim.AdamW(parameters, fused=True), 2, 1.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with syncs.counted() as counted:
        plain.step()
    assert counted.reads == 3, counted


@pytest.mark.parametrize("stage", [0, 2])
def test_an_update_whose_numbers_are_not_finite_is_refused_before_the_step(syncs, engine_of, stage, monkeypatch):
    engine, stepped = engine_of(stage), []
    monkeypatch.setattr(engine._engine.optimizer.optimizer, "step", lambda: stepped.append(1))
    with syncs.reading(math.nan), pytest.raises(NonFiniteError, match="loss is nan"):
        engine.update(prepared_batches().micro_batches, 1e-3)
    assert not stepped


def test_the_state_is_read_to_the_cpu(syncs, monkeypatch):
    model = strict_device.make_model("gpt2", torch.bfloat16)
    with torch.device(DEVICE):
        add_adapters(model, MARKERS, LoraConfig(rank=2))
    loop = LatentLoop(model, True, defer_gradients=False)
    engine = make_engine(monkeypatch, syncs, loop, tiny_config("deepspeed=zero1", "run.bf16=true"))
    engine.update(prepared_batches(1).micro_batches, 1e-3)
    assert {tensor.device.type for tensor in engine.model_state().values()} == {"cpu"}
    assert engine.device == DEVICE


@pytest.mark.parametrize(
    "objective",
    [
        ("objective=likelihood",),
        ("objective=sim_cot", "sim_cot.decoder_init=model"),
        ("objective=sim_cot_codi",),
        ("objective=lotus",),
        ("objective=supervised_thoughts", "supervised_thoughts.thought_targets=path"),
    ],
    ids=lambda objective: objective[0].removeprefix("objective="),
)
def test_epochs_with_their_validation(syncs, monkeypatch, objective):
    """The trainer itself: one epoch without thoughts, and one with, with the losses of all objectives but ``grpo``."""
    size = "size={train: 12, valid: 3, test: 3}"
    with torch.device(DEVICE):
        experiment = tiny_experiment(size, "num_epochs=2", *objective, ranks=Ranks(device=DEVICE))
    engine = make_engine(monkeypatch, syncs, experiment.loop(), experiment.config)
    saver = SimpleNamespace(lock_lost=False, failed=False, is_saved=lambda position: True)
    saver.after_epoch = saver.finish = lambda *arguments: None
    trainer = Trainer(experiment, engine, saver, ProgressBar(is_first=False), None, AskedToStop())
    position = trainer.fit(Position())
    assert (position.epoch, position.global_step) == (2, 4)
