"""The cases can fail: each mutation takes a device out of the code or puts a host sync in, and something raises.

A mutation replaces a piece of a function's source. The same scenarios pass without it in the other files of cases.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from making_completions import config_of
from making_layouts import MARKERS
from making_probing import QUESTIONS, make_reasoner

import strict_device
from coconut_ds.generation import sampling, slot_passes, uploads
from coconut_ds.generation.slot_passes import SlotPasses
from coconut_ds.model import deferred, latent_loop, marker_rows, passes, tables
from coconut_ds.model.collate import Batch
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.step_columns import StepColumns
from coconut_ds.model.thought_noise import ThoughtNoise
from coconut_ds.model.value_directions import ValueDirections
from coconut_ds.objectives.grpo import Grpo, GrpoBatch
from coconut_ds.probing import states
from coconut_ds.probing.baselines import baselines_of
from strict_device import HostSync, Syncs, cases_generation, cases_grpo
from strict_device.batches import mixed_batch, on_device

DEVICE = strict_device.device()
MIXED = (RuntimeError, "same device")
SYNC = (HostSync, "the host waits for the device: model/")


def train(syncs: Syncs, defer_gradients: bool = False) -> None:
    inputs, targets = on_device(mixed_batch())
    loop = LatentLoop(strict_device.make_model("gpt2"), defer_gradients=defer_gradients)
    with syncs.refused():
        loop(latent_loop.latent_loss, inputs, targets).backward()


def train_on_completions(syncs: Syncs, kind: str) -> None:
    objective = Grpo(config_of(f"grpo.exploration={kind}"))
    loop = objective.equip(LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False))
    cases_grpo.check_grpo(syncs, loop, objective, 2, known=True)


def train_marker_rows(syncs: Syncs) -> None:
    model = strict_device.make_model("gpt2")
    marker_rows.train_marker_rows(model, MARKERS.all())
    inputs, targets = on_device(mixed_batch())
    LatentLoop(model, defer_gradients=False)(latent_loop.latent_loss, inputs, targets)


def generate(name: str) -> Callable[[Syncs], None]:
    def run(syncs: Syncs) -> None:
        loop = LatentLoop(strict_device.make_model("gpt2")).eval()
        cases_generation.run(loop, [replace(one, max_new_tokens=2) for one in cases_generation.REQUESTS[name]])

    return run


def upload_tokens(syncs: Syncs) -> None:
    with syncs.refused():
        uploads.upload([1], DEVICE)


def compute_tables(syncs: Syncs) -> None:
    model = strict_device.make_model("llama")
    tables.recompute_tables(model)
    ids = torch.zeros(1, 2, dtype=torch.long, device=DEVICE)
    # transformers moves the tables to where they are needed, in each pass.
    with syncs.refused(), torch.no_grad():
        model(ids)


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
        function = inspect.unwrap(getattr(static, "__func__", static))
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.function} has no {self.old!r}; adapt this mutation"
        made: dict[str, Any] = {}
        # The file's name, for the place in the message.
        changed = compile(source.replace(self.old, self.new), str(inspect.getsourcefile(function)), "exec")
        exec(changed, vars(sys.modules[function.__module__]), made)
        monkeypatch.setattr(self.owner, self.function, made[self.function])


WHERE = "embeds = torch.where("
MUTATIONS = {
    "item_in_the_loop": Mutation(StepColumns, "_sequential", WHERE, f"states[-1].sum().item(); {WHERE}", train, SYNC),
    "float_in_the_backward_pass": Mutation(
        deferred._WeightGate,
        "backward",
        "if ctx.stash:",
        "if ctx.stash and float(ctx.stash[0][1].sum()) >= 0:",
        partial(train, defer_gradients=True),
        SYNC,
    ),
    "batch_not_moved": Mutation(Batch, "to", "self.buffer.to(device, non_blocking=True)", "self.buffer", train),
    "positions": Mutation(passes, "positions_of", ", device=inputs.position_offset.device", "", train),
    "marker_ids": Mutation(
        marker_rows, "train_marker_rows", ", device=embedding_weight(embedding).device", "", train_marker_rows
    ),
    "rotary_tables": Mutation(
        tables, "recompute_tables", ".to(table.device)", '.to("cpu")', compute_tables, (HostSync, "copies")
    ),
    "tokens": Mutation(slot_passes, "upload", ".to(device, non_blocking=True)", "", generate("greedy")),
    "tokens_not_pinned": Mutation(
        uploads, "_host_tensor", "host.pin_memory()", "host", upload_tokens, (HostSync, "uploads.py")
    ),
    "banned_tokens": Mutation(
        GrpoBatch,
        "to",
        "self.buffer.to(device, non_blocking=True)",
        "self.buffer",
        partial(train_on_completions, kind="gaussian"),
    ),
    "noise_of_thoughts": Mutation(
        ThoughtNoise,
        "to",
        "each.to(device, non_blocking=True)",
        "each",
        partial(train_on_completions, kind="gaussian"),
    ),
    "singular_vectors": Mutation(
        ValueDirections, "use", "weight.to(device)", "weight", partial(train_on_completions, kind="svp")
    ),
    "mask": Mutation(SlotPasses, "extend", ", device=self.device", "", generate("jacobi")),
    "ranks_of_tokens": Mutation(sampling, "_draw", ", device=logits.device", "", generate("sampled")),
    "questions": Mutation(states, "embedded", "ids.to(reasoner.loop.device)", "ids", probe),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_noticed(syncs, name, monkeypatch):
    mutation = MUTATIONS[name]
    mutation.apply(monkeypatch)
    kind, message = mutation.expected
    with pytest.raises(kind, match=message):
        mutation.scenario(syncs)
