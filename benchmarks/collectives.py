"""Counts what the ranks exchange in an update, for ZeRO 0 to 3: ``python benchmarks/collectives.py --ranks 2 --json``.

Real updates of a tiny Llama on CPU processes, through the project's engine; every collective of torch's process groups
is counted, on rank 0, with its bytes. *Bytes* are those that a rank receives with a ring algorithm, as NCCL uses it on
large tensors: (w-1)/w of a gathered or scattered tensor for w ranks, and twice that of a tensor that is reduced for all
ranks. They are also given relative to the bytes of all weights, which carries over to other models.

For ZeRO-3 the command also says how often a weight is gathered for a micro step, in the forward pass (or before it) and
in the backward pass, for the weight that is gathered most often: with held weights (``zero3``), and with DeepSpeed's
own limits, small against the model (``zero3_released``). ``zero3_changing`` are updates with 6, 2, 0, 4 and 6 thoughts
in one engine, ``zero3_accumulating`` an update of two micro steps, and ``zero3_validation`` two losses and two
generated texts, followed by an update.

Without ``--json`` a table is printed; with it, JSON is the last line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from collective_counts import BACKWARD, FORWARD, GATHER, PHASES, counting

from coconut_ds.data.tokens import add_markers, build_word_tokenizer
from coconut_ds.distributed.launcher import launched, launcher
from coconut_ds.distributed.process_group import start_ranks, stop_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import whole_shape
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.backbone import model_from_scratch
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine import Engine

LLAMA = (
    "model.model_config_overrides={hidden_size:32,intermediate_size:48,num_hidden_layers:1,num_attention_heads:4,"
    "num_key_value_heads:2}"
)
BASE = ("data=modular_sum", "model=gpt2_pretrained", "model_id=llama", "model_init=scratch", "tokenizer=dataset", LLAMA)
NOTHING_PERSISTENT = {"stage3_param_persistence_threshold": 0}
"""DeepSpeed never releases a weight below this size: by default, every weight of this model."""
SMALL_LIMITS = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
"""What DeepSpeed's limits mean for a model that is much larger than they are."""
SETTINGS: dict[str, tuple[dict[str, int], bool]] = {
    **{f"zero{stage}": ({"stage": stage}, True) for stage in range(3)},
    "zero3": ({"stage": 3, **NOTHING_PERSISTENT}, True),
    "zero3_released": ({"stage": 3, **NOTHING_PERSISTENT, **SMALL_LIMITS}, False),
}
"""For each setting, the section ``zero_optimization`` of the engine's file, and ``deepspeed.hold_weights``."""
THOUGHTS = (0, 6)
CHANGING = (6, 2, 0, 4, 6)


def layout(num_thoughts: int) -> Layout:
    """A sequence of 12 tokens around some thoughts."""
    ids = [2, 3, 4, 5, *[0] * num_thoughts, *range(1, 9)]
    first = 4 if num_thoughts else len(ids)
    return Layout(ids, [IGNORE] * (len(ids) - 4) + ids[-4:], first, num_thoughts)


def make_engine(zero: Mapping[str, Any], config: Config, holds: bool, folder: Path, ranks: Ranks) -> Engine:
    """An engine with a new model, for a section ``zero_optimization`` of the engine's file."""
    path = folder / "engine.json"
    path.write_text(json.dumps({"zero_optimization": {**zero, "reduce_bucket_size": 1_000_000}}))
    engine_file = config.deepspeed.model_copy(update={"config": str(path), "hold_weights": holds})
    config = config.model_copy(update={"deepspeed": engine_file})
    tokenizer = build_word_tokenizer(map(str, range(60)))
    add_markers(tokenizer)
    torch.manual_seed(0)
    model = model_from_scratch(config.model, tokenizer, len(tokenizer))
    loop = LatentLoop(model, defer_gradients=zero["stage"] < 3)
    return Engine(loop, config, BatchGeometry(2 * ranks.size, 2, 1, ranks.size), ranks)


def update(engine: Engine, num_thoughts: int, micro_steps: int = 1) -> float:
    """Makes one update; returns its loss."""
    batch = collate([layout(num_thoughts)] * 2, [1e-2] * 2, num_thoughts, 0)
    return engine.update([batch] * micro_steps, 1e-3).loss


def weight_bytes(engine: Engine) -> int:
    """Bytes of all weights, in the type that the model computes in."""
    weights = engine._engine.module.parameters()
    return sum(weight.element_size() * whole_shape(weight).numel() for weight in weights)


def measure(engine: Engine, thoughts: Sequence[int], ranks: Ranks, micro_steps: int = 1) -> dict[str, Any]:
    """Counts the collectives of an update for each number in ``thoughts``, and averages over the updates."""
    losses, count = [], len(thoughts)
    with counting(engine) as found:
        for number in thoughts:
            losses.append(update(engine, number, micro_steps))
            found.phase = FORWARD
    weights = weight_bytes(engine)
    phases = {
        phase: {
            "calls": {kind: calls / count for kind, calls in traffic.calls.items()},
            "received_bytes": traffic.received(ranks.size) / count,
            "gathers": round(max(traffic.gathers.values(), default=0) / count / micro_steps, 3),
            "gathered": round(traffic.bytes[GATHER] / weights / count, 3),
        }
        for phase, traffic in found.traffic.items()
    }
    received = sum(phase["received_bytes"] for phase in phases.values())
    return {**phases, "losses": losses, "received": round(received / weights, 3)}


def validate(engine: Engine, num_thoughts: int) -> None:
    """Computes the loss of a batch twice and generates two texts, as a validation does, and goes back to training."""
    engine.train(False)
    inputs, targets = collate([layout(num_thoughts)] * 2, [1e-2] * 2, num_thoughts, 0)
    prompt = Layout([2, 3, 4, 5, *[0] * num_thoughts], [IGNORE] * (4 + num_thoughts), 4, num_thoughts)
    with torch.no_grad():
        for _ in range(2):
            engine(latent_loss, inputs, targets)
        engine(generate, [Request(prompt, 4, min_new_tokens=4)] * 2, [1])
    engine.train()


def measure_validation(engine: Engine, num_thoughts: int) -> dict[str, float]:
    """How often a weight is gathered for a validation, and for an update after it."""
    found: dict[str, float] = {}
    for name, call in (("validation", validate), ("update", update)):
        with counting(engine) as collectives:
            call(engine, num_thoughts)
        found[name] = sum(max(each.gathers.values(), default=0) for each in collectives.traffic.values())
    return found


def count_all(folder: Path, ranks: Ranks, names: Sequence[str], bf16: bool, brief: bool) -> dict[str, Any]:
    """All counts, by the name of the setting and the number of thoughts; see ``main`` for ``brief``."""
    config = compose_config([*BASE, "deepspeed=zero3", f"run.bf16={str(bf16).lower()}"])
    found: dict[str, Any] = {"ranks": ranks.size}
    for name in names:
        if name == "zero0" and bf16:
            continue
        zero, holds = SETTINGS[name]
        engine = make_engine(zero, config, holds, folder, ranks)
        found[name] = {}
        for number in THOUGHTS:
            # DeepSpeed learns the order of the modules in two updates, if it gathers their weights.
            for _ in range(2 if zero["stage"] == 3 else 0):
                update(engine, number)
            found[name][str(number)] = measure(engine, [number], ranks)
        if zero["stage"] == 3:
            if not brief:
                found[f"{name}_changing"] = measure(engine, CHANGING, ranks)
            found[f"{name}_accumulating"] = measure(engine, [6], ranks, micro_steps=2)
            if not brief:
                found[f"{name}_validation"] = measure_validation(engine, 6)
            most = found[name][str(max(THOUGHTS))]
            found |= {f"{name}_gathers_{phase}": most[phase]["gathers"] for phase in (FORWARD, BACKWARD)}
    return found


def table(found: Mapping[str, Any]) -> str:
    """The counts for people."""
    lines = [
        f"{found['ranks']} ranks; what a rank receives in an update, relative to the bytes of all weights; collectives",
        f"{'':<18}{'thoughts':>9}{'forward':>10}{'backward':>10}{'step':>10}{'total':>10}{'calls':>7}",
    ]
    for name, by_thoughts in found.items():
        if isinstance(by_thoughts, dict) and "0" in by_thoughts:
            for number, counts in by_thoughts.items():
                total = sum(counts[phase]["received_bytes"] for phase in PHASES if phase in counts)
                weights = total / counts["received"] if counts["received"] else 1.0
                shares = [counts.get(phase, {}).get("received_bytes", 0) / weights for phase in PHASES]
                calls = sum(sum(counts[phase]["calls"].values()) for phase in PHASES if phase in counts)
                columns = "".join(f"{share:10.3f}" for share in (*shares, counts["received"]))
                lines.append(f"{name:<18}{number:>9}{columns}{calls:7.0f}")
    for name in ("zero3", "zero3_released"):
        if name not in found:
            continue
        forward, backward = (found[f"{name}_gathers_{phase}"] for phase in (FORWARD, BACKWARD))
        lines.append(
            f"{name}: a weight is gathered {forward:g} times in the forward, {backward:g} in the backward pass"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the benchmark from the command line; the ranks run it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="number of processes on this machine")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--bf16", action="store_true", help="compute in bf16, which ZeRO 0 does not support")
    parser.add_argument("--brief", action="store_true", help="no updates with changing thoughts, and no validation")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not launched():
        command = [*launcher(given.ranks), __file__, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        ranks = start_ranks()
        found = count_all(Path(folder), ranks, given.settings, given.bf16, given.brief)
        stop_ranks()
    if ranks.is_first:
        sys.stdout.write(json.dumps(found) + "\n" if given.json else table(found))


if __name__ == "__main__":
    main()
