"""Counts what the ranks exchange in an update, for ZeRO 0 to 3: ``python benchmarks/collectives.py --ranks 2 --json``.

Real updates of a tiny Llama on CPU processes, through the project's engine; every collective of torch's process groups
is counted, on rank 0, with its bytes. *Bytes* are those that a rank receives with a ring algorithm, as NCCL uses it on
large tensors: (w-1)/w of a gathered or scattered tensor for w ranks, and twice that of a tensor that is reduced for all ranks. They
are also given relative to the bytes of all weights, which is what carries over to other models and numbers of ranks.

For ZeRO-3 the command also says how often a weight is gathered for a micro step, in the forward pass (or before it)
and in the backward pass, for the weight that is gathered most often: with held weights (``zero3``), and with DeepSpeed's
own limits, small against the model (``zero3_released``). ``zero3_changing`` are updates with 6, 2, 0, 0, 4, 6 and 6 thoughts in one engine.

Without ``--json`` a table is printed; with it, JSON is the last line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coconut_ds.data.tokens import add_markers, build_word_tokenizer
from coconut_ds.distributed.launcher import launched, launcher
from coconut_ds.distributed.process_group import start_ranks, stop_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import is_sharded, whole_shape
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.backbone import model_from_scratch
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine import Engine

LLAMA = (
    "model.model_config_overrides={hidden_size:32,intermediate_size:48,num_hidden_layers:2,num_attention_heads:4,"
    "num_key_value_heads:2}"
)
BASE = ("data=modular_sum", "model=gpt2_pretrained", "model_id=llama", "model_init=scratch", "tokenizer=dataset", LLAMA)
NOTHING_PERSISTENT = {"stage3_param_persistence_threshold": 0}
"""DeepSpeed never releases a weight below this size: by default, every weight of this model."""
SMALL_LIMITS = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
"""What DeepSpeed's limits mean for a model that is much larger than they are."""
THOUGHTS = (0, 6)
CHANGING = (6, 2, 0, 0, 4, 6, 6)
PHASES = FORWARD, BACKWARD, STEP = "forward", "backward", "step"
GATHER, SCATTER, REDUCE, OTHER = "all_gather", "reduce_scatter", "all_reduce", "other"
KINDS = {
    **dict.fromkeys(("_allgather_base_", "allgather_", "allgather_into_tensor_coalesced_"), GATHER),
    **dict.fromkeys(("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_"), SCATTER),
    **dict.fromkeys(("allreduce_", "allreduce_coalesced_"), REDUCE),
}
"""Kinds of torch's operations (``torch.ops.c10d``)."""
SMALL = 256
"""Collectives of fewer bytes carry no weights and no gradients: losses, norms, flags. They are counted apart."""


@dataclass
class Traffic:
    """What a rank took part in during one phase."""

    calls: Counter[str] = field(default_factory=Counter)
    """Number of collectives of each kind, small ones included."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Bytes of the tensors (of the whole result, or of what was scattered) of each kind, without small ones."""
    gathers: Counter[int] = field(default_factory=Counter)
    """How often each weight was gathered under ZeRO-3, by DeepSpeed's number of the weight."""

    def received(self, ranks: int) -> float:
        """Bytes that a rank receives with a ring algorithm."""
        passes = {GATHER: 1, SCATTER: 1, REDUCE: 2, OTHER: 1}
        return sum(passes[kind] * size * (ranks - 1) / ranks for kind, size in self.bytes.items())


class Collectives(TorchDispatchMode):
    """Counts collectives by phase. The caller sets ``phase``."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = FORWARD
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" and "barrier" not in str(func):
            kind = KINDS.get(func._schema.name.removeprefix("c10d::"), OTHER)
            size = max((_bytes(argument) for argument in args[:2]), default=0)
            traffic = self.traffic[self.phase]
            traffic.calls[kind] += 1
            if size >= SMALL:
                traffic.bytes[kind] += size
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    """Bytes of all tensors in an argument, which may be a list of lists of tensors."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


@contextmanager
def counting(engine: Engine) -> Iterator[Collectives]:
    """Counts the collectives of the updates of ``engine`` within it."""
    inner, found = engine._engine, Collectives()
    backward, step = inner.backward, inner.step
    weights = [weight for weight in inner.module.parameters() if is_sharded(weight)]
    methods = [(weight.all_gather, weight.all_gather_coalesced) for weight in weights]

    def noting(gather: Callable[..., Any], own: Any) -> Callable[..., Any]:
        def called(weights: Any = None, **options: Any) -> Any:
            weights = [own] if weights is None else list(weights)
            missing = [weight.ds_id for weight in weights if weight.ds_status.name == "NOT_AVAILABLE"]
            found.traffic[found.phase].gathers.update(missing)
            return gather(weights, **options)

        return called

    def in_phase(call: Callable[..., Any], phase: str, after: str) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            found.phase = phase
            result = call(*arguments, **options)
            found.phase = after
            return result

        return called

    # The next micro step begins with a forward pass; what follows the last backward pass belongs to the step.
    inner.backward = in_phase(backward, BACKWARD, FORWARD)
    inner.step = in_phase(step, STEP, STEP)
    for weight, (one, several) in zip(weights, methods, strict=True):
        weight.all_gather, weight.all_gather_coalesced = noting(one, weight), noting(several, weight)
    try:
        with found:
            yield found
    finally:
        inner.backward, inner.step = backward, step
        for weight, (one, several) in zip(weights, methods, strict=True):
            weight.all_gather, weight.all_gather_coalesced = one, several


def layout(num_thoughts: int) -> Layout:
    """A sequence of 12 tokens around some thoughts."""
    ids = [2, 3, 4, 5, *[0] * num_thoughts, *range(1, 9)]
    first = 4 if num_thoughts else len(ids)
    return Layout(ids, [IGNORE] * (len(ids) - 4) + ids[-4:], first, num_thoughts)


def make_engine(zero: Mapping[str, Any], folder: Path, ranks: Ranks, *overrides: str) -> Engine:
    """An engine with a new model, for a section ``zero_optimization`` of the engine's file."""
    path = folder / "engine.json"
    path.write_text(json.dumps({"zero_optimization": dict(zero)}))
    config: Config = compose_config([*BASE, f"deepspeed.config={path}", *overrides])
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
    """Bytes of all weights, in fp32."""
    return sum(4 * whole_shape(parameter).numel() for parameter in engine._engine.module.parameters())


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


def count_all(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """All counts, by the name of the setting and the number of thoughts."""
    released, held = "deepspeed.hold_weights=false", "deepspeed.hold_weights=true"
    three = {"stage": 3, **NOTHING_PERSISTENT}
    settings: dict[str, tuple[dict[str, Any], str]] = {
        **{f"zero{stage}": ({"stage": stage}, held) for stage in range(3)},
        "zero3": (three, held),
        "zero3_released": ({**three, **SMALL_LIMITS}, released),
    }
    found: dict[str, Any] = {"ranks": ranks.size}
    for name, (zero, hold) in settings.items():
        found[name] = {}
        for number in THOUGHTS:
            engine = make_engine(zero, folder, ranks, hold)
            # The first updates also make the optimizer's state, and DeepSpeed learns the order of the modules.
            for _ in range(2):
                update(engine, number)
            found[name][str(number)] = measure(engine, [number], ranks)
    for name in ("zero3", "zero3_released"):
        zero, hold = settings[name]
        engine = make_engine(zero, folder, ranks, hold)
        found[f"{name}_changing"] = measure(engine, CHANGING, ranks)
        found[f"{name}_accumulating"] = measure(engine, [6, 6], ranks, micro_steps=3)
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
        forward, backward = (found[f"{name}_gathers_{phase}"] for phase in (FORWARD, BACKWARD))
        lines.append(
            f"{name}: a weight is gathered {forward:g} times in the forward, {backward:g} in the backward pass"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the benchmark from the command line; the ranks run it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="number of processes on this machine")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not launched():
        arguments = ["--json"] if given.json else []
        command = [*launcher(given.ranks), __file__, *arguments]
        raise SystemExit(subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        ranks = start_ranks()
        found = count_all(Path(folder), ranks)
        stop_ranks()
    if ranks.is_first:
        sys.stdout.write(json.dumps(found) + "\n" if given.json else table(found))


if __name__ == "__main__":
    main()
