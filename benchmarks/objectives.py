"""Measures what an update of each objective costs: ``python benchmarks/objectives.py --json``.

An update is the forward and the backward pass of one micro batch, without the optimizer's step. In each round, the
update of every objective, its parts one by one, and the likelihood of the same sequences are timed one after the other
in one process. The parts of an objective are the passes that it cannot do without, each with its own backward pass, for
example those of CODI's student and of its teacher.

The last line is JSON: for each objective

* ``seconds_over_parts``: time of an update over the time of its parts, median over the rounds.
* ``seconds_over_likelihood``: the same over the likelihood of the sequences with thoughts, without a feed.
* ``memory_over_likelihood``: peak of the bytes of all tensors that the update allocates, over that of the likelihood;
  the weights and their gradients are there before it and do not count.

The problems are those of the other training benchmarks; 6 thoughts stand for all steps, and for LOTUS 6 blocks of 13
thoughts. To add an objective, add an entry to ``ENTRIES``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from training_workload import MODELS, make_config, problems_of
from transformers import AutoModelForCausalLM

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.tokens import add_markers, encode_announcements, tokenize
from coconut_ds.formats import TEXT
from coconut_ds.memory.passes import LiveBytes, whole_micro_batch
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.hop_targets import hop_sums
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.loss import target_loss
from coconut_ds.model.starting import starting_feed, wanted_feed
from coconut_ds.objectives import objective_of
from coconut_ds.objectives.sim_cot import step_loss
from coconut_ds.settings.compose import compose_config

THOUGHTS = ("method=coconut_no_curriculum", "c_thought=1", "max_latent_stage=6")
Work = Callable[[], Tensor]
"""Computes a loss."""


@dataclass(frozen=True)
class Entry:
    """One objective."""

    overrides: tuple[str, ...]
    """Of the configuration, besides ``THOUGHTS``."""
    parts: Callable[[LatentLoop, Any], list[Work]]
    """The passes that an update consists of, given the loop and the micro batch that the objective has collated."""


def codi_parts(loop: LatentLoop, batch: Any) -> list[Work]:
    """The likelihood of the student's sequences, and of the teacher's."""
    return [partial(loop, latent_loss, *view.batch) for view in (batch.student, batch.teacher)]


def lotus_parts(loop: LatentLoop, batch: Any) -> list[Work]:
    """The likelihood of the same sequences, with all rounds, and head and cross entropy of the steps' tokens."""
    targets = batch.steps.targets
    states = torch.randn(len(targets.ids), loop.width, device=loop.device, dtype=loop.model.dtype, requires_grad=True)
    return [
        partial(loop, latent_loss, *batch.written),
        partial(target_loss, loop.head, loop.vocabulary, states, targets),
    ]


def sim_cot_parts(loop: LatentLoop, batch: Any) -> list[Work]:
    """The likelihood of the sequences with thoughts, and the decoder's pass over random thoughts."""
    return [partial(loop, latent_loss, *batch.base), _decoder_part(loop, batch, batch.base)]


def sim_cot_codi_parts(loop: LatentLoop, batch: Any) -> list[Work]:
    """The parts of CODI, and the decoder's pass over random thoughts."""
    return [*codi_parts(loop, batch.base), _decoder_part(loop, batch, batch.base.student.batch)]


def supervised_thoughts_parts(loop: LatentLoop, batch: Any) -> list[Work]:
    """The likelihood of the sequences, and the logits of random states at the thoughts."""
    thoughts = batch.thoughts
    size = 1, int(thoughts.targets.index.max()) + 1, loop.width
    states = torch.randn(size, device=loop.device, dtype=loop.model.dtype, requires_grad=True)
    return [
        partial(loop, latent_loss, *batch.written),
        lambda: hop_sums(loop.head, loop.vocabulary, states, thoughts)[0],
    ]


def grpo_parts(loop: LatentLoop, batch: Any) -> list[Work]:
    """The likelihood of the same completions."""
    return [partial(loop, latent_loss, *batch.batch)]


def _decoder_part(loop: LatentLoop, batch: Any, thinking: Batch) -> Work:
    inputs = thinking.inputs
    columns = sum(ids.shape[1] for ids in (inputs.prefix_ids, inputs.step_ids, inputs.rest_ids))
    size = len(inputs.prefix_ids), columns, loop.width
    states = torch.randn(size, device=loop.device, dtype=loop.model.dtype, requires_grad=True)
    return partial(loop, step_loss, states, batch.steps)


ENTRIES = {
    "codi": Entry(("objective=codi",), codi_parts),
    "lotus": Entry(("objective=lotus", "c_thought=13"), lotus_parts),
    "sim_cot": Entry(("objective=sim_cot",), sim_cot_parts),
    "sim_cot_codi": Entry(("objective=sim_cot_codi",), sim_cot_codi_parts),
    "supervised_thoughts": Entry(
        ("objective=supervised_thoughts", "supervised_thoughts.thought_targets=path"), supervised_thoughts_parts
    ),
    # The replay of given completions; ``rollouts.py`` measures how fast they are made.
    "grpo": Entry(("objective=grpo", "grpo.exploration=none"), grpo_parts),
}


@dataclass(frozen=True)
class Update:
    """The micro batch of an objective."""

    loss: Work
    parts: list[Work]


def prepared(entry: Entry | None, model_name: str, micro: int, device: torch.device, dtype: torch.dtype) -> Update:
    """The micro batch of an objective, with a model of its own; None: the likelihood."""
    config = compose_config([*THOUGHTS, *(entry.overrides if entry else ())])
    problems, tokenizer, _ = problems_of(None, None)
    markers, _ = add_markers(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(model_name, len(tokenizer)), dtype=torch.float32)
    method, spec = METHODS[config.method.kind], config.training.curriculum_spec
    backbone, objective = Backbone(model, tokenizer, markers), objective_of(config)
    backbone.feed = starting_feed(backbone, wanted_feed(config, model), method, 0)
    loop = LatentLoop(model, auxiliary=objective.auxiliary(backbone), feed=backbone.feed).to(device, dtype).train()
    announcements = encode_announcements(tokenizer, TEXT)
    sequences = Sequences(config.training, 0, method, spec, markers, announcements)
    arrays = ProblemArrays([arrays_of(tokenize(tokenizer, problems[:micro]))], ())
    examples = objective.examples(sequences, 0, 0, arrays, range(micro))
    collator = Collator.for_device(device, int(tokenizer.eos_token_id), config.parallel, None)
    batch = objective.collate(collator, examples, whole_micro_batch(examples)).to(device)
    return Update(lambda: loop(objective.loss, batch).sum(), entry.parts(loop, batch) if entry else [])


def seconds(work: Work, device: torch.device) -> float:
    """Time of a forward and backward pass."""
    _synchronise(device)
    began = time.perf_counter()
    work().backward()
    _synchronise(device)
    return time.perf_counter() - began


def peak_bytes(work: Work, device: torch.device) -> int:
    """Largest number of bytes that a forward and backward pass has allocated at any time."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work().backward()
        return int(torch.cuda.max_memory_allocated(device) - before)
    ledger = LiveBytes()
    with ledger:
        work().backward()
    return int(ledger.peak.total())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(name: str, rounds: int, make: Callable[[Entry | None], Update], device: torch.device) -> dict[str, float]:
    """The numbers of one objective, described at the top of this file."""
    update, plain = make(ENTRIES[name]), make(None)
    works = [update.loss, plain.loss, *update.parts]
    for work in works:
        # Makes the gradients, and warms up.
        work().backward()
    taken = [[seconds(work, device) for work in works] for _ in range(rounds)]
    return {
        "seconds_over_parts": statistics.median(own / sum(parts) for own, _, *parts in taken),
        "seconds_over_likelihood": statistics.median(own / likelihood for own, likelihood, *_ in taken),
        "memory_over_likelihood": peak_bytes(update.loss, device) / peak_bytes(plain.loss, device),
    }


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=list(ENTRIES), help="measure only this one")
    parser.add_argument("--model", choices=list(MODELS), default="gpt2_small")
    parser.add_argument("--micro", type=int, default=8, help="problems in a micro batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), torch.bfloat16 if options.bf16 else torch.float32
    make = partial(prepared, model_name=options.model, micro=options.micro, device=device, dtype=dtype)
    result = {}
    for name in [options.objective] if options.objective else ENTRIES:
        result[name] = {key: round(value, 3) for key, value in measure(name, options.rounds, make, device).items()}
        if not options.json:
            print(f"{name:>10}  " + "  ".join(f"{key} {value:.3f}" for key, value in result[name].items()))
    print(json.dumps({"torch": torch.__version__, "model": options.model, "dtype": str(dtype), **result}))


if __name__ == "__main__":
    main()
