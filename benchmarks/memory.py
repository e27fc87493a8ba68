"""Compares the memory that ``coconut-plan`` plans with what training allocates: ``python benchmarks/memory.py``.

Runs on the CPU, each case in a process of its own, or in several ranks, of which the first one is measured: two updates
of two micro batches each, with the project's engine.
Only the last micro batch is large. The others have four tokens, enough to make the gradients and the optimizer's state
that exist at its peak.
The measured number is the peak of all memory that torch's allocator has given out, from the first weight on, as torch's
profiler records it. The workspace of kernels is in neither number. The last line is JSON: planned over measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.tokens import add_markers, build_word_tokenizer
from coconut_ds.distributed.launcher import launcher
from coconut_ds.distributed.process_group import start_ranks, stop_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.memory.passes import whole_micro_batch
from coconut_ds.memory.report import planner_of
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import TokenizedProblem
from coconut_ds.model.backbone import Backbone, model_from_scratch
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.model.starting import starting_feed, wanted_feed
from coconut_ds.objectives import objective_of
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine import Engine
from coconut_ds.training.engine_file import zero_stage

NO_DROPOUT = "resid_pdrop:0.0,embd_pdrop:0.0,attn_pdrop:0.0"
GPT2 = f"model.model_config_overrides={{n_layer:2,n_head:4,n_embd:128,{NO_DROPOUT}}}"
LLAMA = (
    "model.model_config_overrides={hidden_size:128,intermediate_size:384,num_hidden_layers:3,num_attention_heads:4,"
    "num_key_value_heads:2}"
)


@dataclass(frozen=True)
class Case:
    """A model and the engine that trains it."""

    stage: int
    """The ZeRO stage."""
    overrides: tuple[str, ...]
    """Of the configuration."""
    ranks: int = 1


CASES = {
    "GPT-2, 6 thoughts, ZeRO 0": Case(0, (GPT2,)),
    "GPT-2, no thoughts, ZeRO 1": Case(1, (GPT2, "method=cot")),
    "Llama, 6 thoughts, ZeRO 2": Case(2, (LLAMA, "model_id=llama")),
    "GPT-2, 6 thoughts, CODI, ZeRO 1": Case(1, (GPT2, "objective=codi")),
    "Llama, 6 thoughts, checkpointing, ZeRO 3": Case(3, (LLAMA, "model_id=llama", "activation_checkpointing=true")),
    "Llama, 6 thoughts, LoRA, ZeRO 3": Case(3, (LLAMA, "model_id=llama", "lora.rank=8")),
    "Llama, 6 thoughts, ZeRO 3, two ranks": Case(3, (LLAMA, "model_id=llama", "activation_checkpointing=true"), 2),
}
MICRO_BATCH, TOKENS = 8, 120
VOCABULARY = 4000
ENGINE = {"reduce_bucket_size": 1_000_000, "stage3_param_persistence_threshold": 0}
"""DeepSpeed's default buckets of 2 GB would hide everything else."""


def case(name: str, folder: Path, thoughts: int) -> Config:
    """The configuration of a case. ``thoughts``: their number in the methods that have them."""
    path = folder / "engine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": CASES[name].stage, **ENGINE}}))
    size = [f"batch_size_training={MICRO_BATCH}", f"global_batch_size={2 * MICRO_BATCH * CASES[name].ranks}"]
    size.append(f"max_latent_stage={thoughts}")
    base = ["data=modular_sum", "model=gpt2_pretrained", "model_id=gpt2", "model_init=scratch", "tokenizer=dataset"]
    return compose_config([*base, *size, f"deepspeed.config={path}", *CASES[name].overrides])


def measure(config: Config, ranks: Ranks) -> tuple[int, int]:
    """Planned and measured bytes at the peak."""
    tokenizer = build_word_tokenizer(map(str, range(VOCABULARY)))
    markers, _ = add_markers(tokenizer)
    planner = planner_of(config, ranks.size, TOKENS, TOKENS // 4, on_cpu=True)
    (stage,) = planner.workload.longest
    planned = replace(planner, rows=len(tokenizer)).plan(MICRO_BATCH).total
    objective = objective_of(config)
    # Enough to make gradients and the optimizer's state.
    tiny = ProblemArrays([arrays_of([TokenizedProblem([0], ([0],), [0, 0])])], ())
    few = objective.examples(planner.workload.sequences, 0, 0, tiny, [0])
    small, batch = (
        objective.collate(Collator(0, config.parallel), examples, whole_micro_batch(examples))
        for examples in (few, planner.examples(stage, MICRO_BATCH))
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.manual_seed(0)
        model = model_from_scratch(config.model, tokenizer, len(tokenizer))
        if config.model.lora.rank:
            add_adapters(model, markers, config.model.lora)
        defers = zero_stage(config) < 3
        backbone = Backbone(model, tokenizer, markers)
        backbone.feed = starting_feed(backbone, wanted_feed(config, model), METHODS[config.method.kind], 0)
        checkpointing, auxiliary = config.training.activation_checkpointing, objective.auxiliary(backbone)
        loop = LatentLoop(model, checkpointing, defers, auxiliary=auxiliary, feed=backbone.feed)
        engine = Engine(loop, config, BatchGeometry.derive(config.training, ranks.size), ranks)
        engine.update([small, small], 1e-4)
        engine.update([small, batch], 1e-4)
    return planned, peak(profiler)


def peak(profiler: profile) -> int:
    """The largest number of bytes that were allocated and not yet freed at any time."""
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = largest = 0
    for _, change in changes:
        now += change
        largest = max(largest, now)
    return largest


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), help="measure only this case, in this process")
    parser.add_argument("--thoughts", type=int, default=6, help="number of thoughts of a case (default: 6)")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is None:
        # A process for each case: memory left over from one would be freed while the next is measured.
        found = {name: measure_in_a_process(name) for name in CASES}
        for name, (planned, measured) in found.items():
            line = f"{name:<42} planned {planned / 2**20:7.1f} MiB, measured {measured / 2**20:7.1f} MiB, "
            sys.stderr.write(f"{line}ratio {planned / measured:.3f}\n")
        sys.stdout.write(json.dumps({name: planned / measured for name, (planned, measured) in found.items()}) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        ranks = start_ranks()
        result = measure(case(given.case, Path(folder), given.thoughts), ranks)
        stop_ranks()
    if ranks.is_first:
        sys.stdout.write(json.dumps(result) + "\n")


def measure_in_a_process(name: str) -> tuple[int, int]:
    """``measure`` of a case, in processes of its own."""
    ranks = CASES[name].ranks
    command = [*([sys.executable] if ranks == 1 else launcher(ranks)), __file__, "--case", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    planned, measured = json.loads(done.stdout.splitlines()[-1])
    return planned, measured


if __name__ == "__main__":
    main()
