"""What a run will take of a rank's memory, before anything is built: ``coconut-plan``.

Weights, gradients and optimizer follow from numbers of parameters and the ZeRO stage; what passes hold is traced
(``model.live_bytes``). Not in it: the device's own context (about 1 GiB), the inside of kernels, fragmentation.

With ``N`` parameters, ``T`` of them trained, ``w`` ranks and ``b`` bytes a number (4, or 2 in bf16), as DeepSpeed 0.19
has it with this project's settings:

=====  ==============  =====================================  ===================
stage  weights         gradients                              optimizer
=====  ==============  =====================================  ===================
0      b·N             b·T                                    8·T
1      b·N             4·T, and 2·T more in bf16              12·T / w
2      b·N             4·T / w                                12·T / w
3      b·N / w         4·T / w                                12·T / w
=====  ==============  =====================================  ===================

Adam keeps two numbers a parameter, stages 1 to 3 an fp32 copy as well. Stage 1 reduces once all micro batches are
through, so it keeps whole gradients. At the step, stages 1 to 3 copy a rank's gradients once more.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from coconut_ds.memory.passes import PARTS, parameter_counts, update_bytes
from coconut_ds.methods.layout import Layout
from coconut_ds.settings import Config
from coconut_ds.training.engine_file import read_engine_file

GIB = 2**30
DEFAULT_BUCKET = 500_000_000
"""DeepSpeed's ``reduce_bucket_size`` where a file has none."""


@dataclass(frozen=True)
class Kept:
    """Bytes of a rank that stay from one micro batch to the next."""

    weights: int
    gathered: int
    """Whole weights of other ranks at the end of a backward pass (ZeRO-3); an upper bound."""
    gradients: int
    optimizer: int
    buckets: int
    """What gradients are copied to before ranks exchange them."""
    at_step: int
    """More at the optimizer's step, when no activations are there."""
    host: int
    """In the machine's own memory, where it is offloaded to."""

    @property
    def total(self) -> int:
        """On the device, during a backward pass."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.buckets


@dataclass(frozen=True)
class MemoryPlan:
    """One rank's memory."""

    parameters: int
    trained: int
    micro_batch: int
    kept: Kept
    passes: dict[str, int]
    """Bytes by part (``live_bytes.PARTS``) at the peak of a micro batch, at the stage that takes most."""
    stage: int
    """That stage."""
    keys_and_values: int
    """Bytes of the key/value cache of a micro batch; they are in ``passes``."""
    largest_micro_batch: int | None = None
    """That fits; None where nobody asked, 0 where not even one problem does."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        kept = self.kept
        step = kept.weights + kept.gradients + kept.optimizer + kept.at_step
        return max(kept.total + sum(self.passes.values()), step)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the total."""
        return {**asdict(self), "total": self.total}


Shapes = Mapping[int, Layout]
"""The longest sequence of each stage that is looked at."""


@dataclass(frozen=True)
class Planner:
    """What plans have in common."""

    config: Config
    architecture: Any
    """The Hugging Face configuration."""
    rows: int
    """Of the embedding."""
    shapes: Shapes
    gpus: int
    on_cpu: bool = False
    """Whether gradients are summed as on a CPU; no plan for a GPU needs it."""

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        return torch.bfloat16 if self.config.run.bf16 else torch.float32

    def plan(self, micro_batch: int, limit: float | None = None) -> MemoryPlan:
        """The memory of ``micro_batch`` problems at a time; ``limit``: bytes for which to look for the largest one."""
        parameters, trained = parameter_counts(self.architecture, self.rows, self.config.model.lora)
        kept = kept_bytes(self.config, parameters, trained, self.gpus)
        found = {stage: self._passes(stage, micro_batch) for stage in self.shapes}
        stage = max(found, key=lambda one: sum(found[one].values()))
        keys_and_values = self._cache_bytes(len(self.shapes[stage])) * micro_batch
        largest = None
        if limit is not None:
            peak = cache(lambda size: sum(self._passes(stage, size).values()))
            largest = largest_that_fits(peak, limit - kept.total)
        return MemoryPlan(parameters, trained, micro_batch, kept, found[stage], stage, keys_and_values, largest)

    def _passes(self, stage: int, micro_batch: int) -> dict[str, int]:
        training = self.config.training
        layouts = [self.shapes[stage]] * micro_batch
        found = update_bytes(
            self.architecture,
            self.rows,
            self.config.model.lora,
            layouts,
            self.dtype,
            training.activation_checkpointing,
            self.config.method.jacobi_iterations,
            self.on_cpu,
        )
        return {part: found[part] for part in PARTS}

    def _cache_bytes(self, length: int) -> int:
        text = self.architecture.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * text.num_hidden_layers * heads * size * length * self.dtype.itemsize)


def kept_bytes(config: Config, parameters: int, trained: int, ranks: int) -> Kept:
    """See the table above."""
    values = read_engine_file(config).get("zero_optimization", {})
    stage, size = int(values.get("stage", 0)), 2 if config.run.bf16 else 4
    bucket = int(values.get("reduce_bucket_size", DEFAULT_BUCKET))
    share = math.ceil(trained / ranks)
    weights = size * (math.ceil(parameters / ranks) if stage == 3 else parameters)
    gathered = size * parameters if stage == 3 and ranks > 1 else 0
    gradients = {0: size * trained, 1: (4 if size == 4 else 6) * trained}.get(stage, 4 * share)
    optimizer = 12 * share if stage else 8 * trained
    # Stage 3 reduces in fp32 here, since that is what gradients are summed in; stage 1 in bf16 has no bucket.
    buckets = bucket * {0: 0, 1: 0 if size == 2 else 4, 2: size, 3: 4}[stage]
    host = 0
    if _offloads(values, "offload_optimizer"):
        host, optimizer, gradients = optimizer + gradients, 0, 0
    if _offloads(values, "offload_param"):
        host, weights = host + weights, 0
    return Kept(weights, gathered, gradients, optimizer, buckets, 4 * share if stage and optimizer else 0, host)


def _offloads(values: Mapping[str, Any], key: str) -> bool:
    return values.get(key, {}).get("device", "none") != "none"


def largest_that_fits(bytes_of: Callable[[int], int], room: float) -> int:
    """The largest micro batch whose passes take at most ``room`` bytes; 0 where one problem takes more.

    At each moment bytes grow in proportion to the rows, so the peak, the largest of them, is convex: a line through two
    sizes lies below it beyond them, and above it between them.
    """
    if bytes_of(1) > room:
        return 0
    low, high = 1, 2
    while bytes_of(high) <= room:
        slope = max(1.0, (bytes_of(high) - bytes_of(low)) / (high - low))
        low, high = high, high + int((room - bytes_of(high)) / slope) + 1
    while high - low > 1:
        slope = (bytes_of(high) - bytes_of(low)) / (high - low)
        guess = min(max(low + int((room - bytes_of(low)) / slope), low + 1), high - 1)
        low, high = (guess, high) if bytes_of(guess) <= room else (low, guess)
    return low
