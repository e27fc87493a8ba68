"""Updates and validation on one device, and the host syncs of an update."""

from types import SimpleNamespace

import pytest
import torch
from making_layouts import MARKERS
from making_training import AskedToStop
from torch_engine import tiny_config, tiny_experiment

import strict_device
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import NonFiniteError
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.runs.resume_state import Position
from coconut_ds.settings.model import LoraConfig
from coconut_ds.training.progress import ProgressBar
from coconut_ds.training.trainer import Trainer
from strict_device.batches import mixed_batch
from strict_device.engines import make_engine

DEVICE = strict_device.device()
AN_UPDATE = {"zero0": (3, 0, 12), "zero2": (4, 0, 12), "zero3": (4, 0, 12)}
"""Host syncs of an update: reads, copies, and copies of each micro batch. DeepSpeed's own step is a stand-in's."""


@pytest.mark.parametrize("stage", AN_UPDATE)
def test_syncs_of_an_update(syncs, stage, monkeypatch):
    """The forward and backward passes have none: the stand-in refuses them."""
    loop = LatentLoop(strict_device.make_model("llama"), defer_gradients=False)
    engine = make_engine(monkeypatch, syncs, loop, tiny_config(f"deepspeed={stage}"))
    engine.train()
    found = []
    for count in (1, 3):
        with syncs.counted() as counted:
            engine.update([mixed_batch()] * count, 1e-3)
        found.append(counted)
        print(counted)
    one, three = found
    assert one.reads == three.reads
    each = (three.copies - one.copies) / 2
    assert (one.reads, one.copies - each, each) == AN_UPDATE[stage]
    with syncs.refused():
        engine.reset_optimizer()


def test_the_state_is_read_to_the_cpu(syncs, monkeypatch):
    model = strict_device.make_model("gpt2", torch.bfloat16)
    add_adapters(model, MARKERS, LoraConfig(rank=2))
    loop = LatentLoop(model, True, defer_gradients=False)
    engine = make_engine(monkeypatch, syncs, loop, tiny_config("deepspeed=zero1", "run.bf16=true"))
    engine.train()
    engine.update([mixed_batch()], 1e-3)
    state = engine.model_state()
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    assert engine.device == DEVICE


@pytest.mark.parametrize("stage", ["zero0", "zero1"])
def test_numbers_that_are_not_finite(syncs, stage, monkeypatch):
    loop = LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False)
    engine = make_engine(monkeypatch, syncs, loop, tiny_config(f"deepspeed={stage}"))
    engine.train()
    with syncs.reading(float("nan")), pytest.raises(NonFiniteError):
        engine.update([mixed_batch()], 1e-3)


@pytest.mark.parametrize("overrides", [(), ("method.thinking=jacobi", "method.iterations=2")], ids=["", "jacobi"])
def test_an_epoch_with_its_validation(syncs, overrides, monkeypatch):
    """The trainer itself, with batches that a thread prepares."""
    ranks = Ranks(device=DEVICE)
    with torch.device(DEVICE):
        experiment = tiny_experiment("num_epochs=2", *overrides, ranks=ranks)
    engine = make_engine(monkeypatch, syncs, experiment.loop(), experiment.config)
    saver = SimpleNamespace(lock_lost=False, is_saved=lambda position: True, after_epoch=lambda *arguments: None)
    trainer = Trainer(experiment, engine, saver, ProgressBar(is_first=False), None, AskedToStop())
    position = trainer.fit(Position())
    assert (position.epoch, position.global_step) == (2, 6)
