"""Counts the collectives of a DeepSpeed engine by phase of an update, and how often ZeRO-3 gathers each weight."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coconut_ds.distributed.zero import is_sharded
from coconut_ds.training.engine import Engine

PHASES = FORWARD, BACKWARD, STEP = "forward", "backward", "step"
GATHER, SCATTER, REDUCE, OTHER = "all_gather", "reduce_scatter", "all_reduce", "other"
KINDS = {
    **dict.fromkeys(("_allgather_base_", "allgather_", "allgather_into_tensor_coalesced_"), GATHER),
    **dict.fromkeys(("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_"), SCATTER),
    **dict.fromkeys(("allreduce_", "allreduce_coalesced_"), REDUCE),
}
"""Kinds of torch's operations (``torch.ops.c10d``)."""
SMALL = 256
"""Collectives of fewer bytes carry losses, norms and flags; their bytes are left out."""


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
