"""The cases can fail: each mutation takes a device out of the code or puts a host sync in, and something raises.

A mutation replaces a piece of a function's source. The same scenarios pass without it in the other files of cases.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from making_layouts import MARKERS
from making_probing import QUESTIONS, make_reasoner

import strict_device
from coconut_ds.generation import sampling
from coconut_ds.generation.slot_passes import SlotPasses
from coconut_ds.model import latent_attention, latent_loop, marker_rows, passes, tables
from coconut_ds.model.collate import LatentInputs, Targets
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.probing import states
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.settings.model import LoraConfig
from strict_device import HostSync, Syncs, cases_generation
from strict_device.batches import mixed_batch, on_device

DEVICE = strict_device.device()
MIXED = (RuntimeError, "same device")
SYNC = (HostSync, "the host waits for the device: model/")


def train(syncs: Syncs) -> None:
    inputs, targets = on_device(mixed_batch())
    loop = LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False)
    with syncs.refused():
        loop(latent_loop.latent_loss, inputs, targets).backward()


def train_with_jacobi(syncs: Syncs) -> None:
    inputs, targets = on_device(mixed_batch(2))
    loop = LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False)
    loop(latent_loop.latent_loss, inputs, targets)


def train_with_lora(syncs: Syncs) -> None:
    model = strict_device.make_model("gpt2")
    add_adapters(model, MARKERS, LoraConfig(rank=2))
    inputs, targets = on_device(mixed_batch())
    LatentLoop(model, defer_gradients=False)(latent_loop.latent_loss, inputs, targets)


def generate(name: str) -> Callable[[Syncs], None]:
    def run(syncs: Syncs) -> None:
        loop = LatentLoop(strict_device.make_model("gpt2")).eval()
        cases_generation.run(loop, [replace(one, max_new_tokens=2) for one in cases_generation.REQUESTS[name]])

    return run


def compute_tables(syncs: Syncs) -> None:
    model = strict_device.make_model("llama")
    tables.recompute_tables(model)
    latent_loop.LatentLoop(model).model(torch.zeros(1, 2, dtype=torch.long, device=DEVICE))


def probe(syncs: Syncs) -> None:
    with torch.device(DEVICE):
        reasoner = make_reasoner("gpt2")
    made = baselines_of(reasoner, QUESTIONS[:1], max_new_tokens=1)
    states.layer_states(reasoner, [one.case for one in made], [one.fed for one in made])


@dataclass(frozen=True)
class Mutation:
    owner: Any
    function: str
    old: str
    new: str
    scenario: Callable[[Syncs], None]
    expected: tuple[type[BaseException], str] = MIXED

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        static = inspect.getattr_static(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(getattr(static, "__func__", static)))
        assert source.count(self.old) == 1, f"{self.function} has no {self.old!r}; adapt this mutation"
        module = sys.modules[getattr(self.owner, "__module__", None) or self.owner.__name__]
        made: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), vars(module), made)
        monkeypatch.setattr(self.owner, self.function, made[self.function])


MOVES = "value.to(device, non_blocking=True) if isinstance(value, Tensor) else value"
APPEND = "states.append(passes"
MUTATIONS = {
    "item_in_the_loop": Mutation(
        LatentLoop, "_sequential_steps", APPEND, f"states[-1].sum().item(); {APPEND}", train, SYNC
    ),
    "bool_in_the_attention": Mutation(
        latent_attention, "prefix_attention", "if not layer.later", "if not (query > 0).any()", train, SYNC
    ),
    "float_in_the_backward_pass": Mutation(
        latent_attention._PrefixGate, "backward", "if not ctx.stash", "if not float(ctx.stash[0][0].sum())", train, SYNC
    ),
    "inputs_not_moved": Mutation(LatentInputs, "to", MOVES, "value", train),
    "targets_not_moved": Mutation(Targets, "to", "tensor.to(device, non_blocking=True)", "tensor", train),
    "positions": Mutation(passes, "positions_of", ", device=inputs.position_offset.device", "", train),
    "future": Mutation(
        latent_attention._PartAttention,
        "forward",
        "places = torch.arange(later - count, later, device=query.device)",
        "places = torch.arange(later - count, later)",
        train_with_jacobi,
    ),
    "marker_ids": Mutation(
        marker_rows, "train_marker_rows", ", device=embedding_weight(embedding).device", "", train_with_lora
    ),
    "rotary_tables": Mutation(tables, "recompute_tables", ".to(table.device)", '.to("cpu")', compute_tables),
    "tokens": Mutation(SlotPasses, "tensor", ", device=self._loop.device", "", generate("greedy")),
    "mask": Mutation(
        SlotPasses, "extend", "torch.arange(end, device=embeds.device)", "torch.arange(end)", generate("jacobi")
    ),
    "draws": Mutation(sampling, "_draw", ", dtype=torch.float64, device=logits.device", "", generate("sampled")),
    "questions": Mutation(states, "_embedded", "ids.to(reasoner.loop.device)", "ids", probe),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_noticed(syncs, name, monkeypatch):
    mutation = MUTATIONS[name]
    mutation.apply(monkeypatch)
    kind, message = mutation.expected
    with pytest.raises(kind, match=message):
        mutation.scenario(syncs)
