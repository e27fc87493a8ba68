"""Plans the memory of one rank of a training run, without building a model: the numbers behind ``coconut-plan``.

The sizes of weights, gradients and optimizer states follow from the numbers of parameters and the ZeRO stage. The
memory of the passes is measured on fake tensors (``memory/passes.py``). Not included are the device's own context
(about 1 GiB), the workspace of kernels, and fragmentation.

Bytes on each rank for ``N`` parameters, ``T`` of them trained, ``w`` ranks, and ``b`` bytes for each number (4, or 2 in
bf16), as DeepSpeed 0.19 allocates them with this project's settings:

=====  ==============  =====================================  ===================
stage  weights         gradients                              optimizer
=====  ==============  =====================================  ===================
0      b·N             b·T                                    8·T
1      b·N             4·T, and 2·T more in bf16              12·T / w
2      b·N             4·T / w                                12·T / w
3      b·N / w         4·T / w                                12·T / w
=====  ==============  =====================================  ===================

Adam stores two numbers for each trained parameter; stages 1 to 3 also store an fp32 copy of it. Stage 1 reduces the
gradients only after the last micro batch, so each rank holds all of them until then. In the optimizer step, stages 1 to
3 copy the rank's share of the gradients once more. Stage 3 also gathers weights from the other ranks: all of them
(``b·N``), because the engine holds them for the update (``deepspeed.hold_weights``), or because DeepSpeed does not
release modules that were called more than once. Only a method without thoughts, without held weights, stays below that:
within ``stage3_max_live_parameters``. So stage 2 needs less memory than stage 3 for the same update, except in the
optimizer step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.memory.passes import PARTS, build_loop, parameter_counts, update_bytes
from coconut_ds.methods import METHODS
from coconut_ds.model.feed import FeedSpec
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.widths import CUDA_WIDTHS
from coconut_ds.objectives import objective_of
from coconut_ds.objectives.base import Examples
from coconut_ds.settings import Config
from coconut_ds.training.engine_file import holds_weights, read_engine_file, zero_stage

GIB = 2**30
DEFAULT_BUCKET = 500_000_000
"""DeepSpeed's default for ``reduce_bucket_size``, in numbers."""
DEFAULT_LIVE = 1_000_000_000
"""DeepSpeed's default for ``stage3_max_live_parameters``, in numbers."""


@dataclass(frozen=True)
class KeptBytes:
    """Bytes on one rank that stay allocated from one micro batch to the next."""

    weights: int
    """This rank's weights."""
    gathered: int
    """Whole weights, gathered from other ranks or from the host's memory (ZeRO-3)."""
    gradients: int
    """This rank's gradients."""
    optimizer: int
    """Optimizer states, including fp32 copies of the weights."""
    buckets: int
    """Buffers that gradients are copied to before ranks exchange them."""
    at_step: int
    """Additional bytes during the optimizer step, when there are no activations."""
    host: int
    """Bytes that are offloaded to the host's memory; the other fields do not include them."""
    start: int = 0
    """Trained weights as they were at the start of the run (``Objective.keeps_start``)."""
    objective: int = 0
    """What the objective keeps beside weights (``Objective.kept_numbers``)."""

    @property
    def total(self) -> int:
        """Bytes on the device during a backward pass, without those of the passes."""
        return self._always + self.gathered + self.buckets

    def peak(self, passes: int) -> int:
        """Bytes at the peak, which is in a backward pass, with ``passes`` more bytes, or in the optimizer step."""
        return max(self.total + passes, self._always + self.at_step)

    @property
    def _always(self) -> int:
        return self.weights + self.start + self.objective + self.gradients + self.optimizer


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one rank, in bytes."""

    parameters: int
    """Number of parameters of the model, its feed, and what the objective trains beside it."""
    trained: int
    """Number of trained parameters."""
    micro_batch: int
    """Problems in a micro batch."""
    kept: KeptBytes
    """Bytes that stay allocated between micro batches."""
    passes: dict[str, int]
    """Bytes by part (``passes.PARTS``) at the peak of a micro batch, at the curriculum stage that takes most."""
    stage: int
    """That stage."""
    keys_and_values: int
    """Bytes of the key/value caches of a micro batch; included in ``passes``."""
    largest_micro_batch: int | None = None
    """The largest micro batch that fits into the given memory: 0 if not even one problem fits, None if no memory was
    given."""
    total_zero2: int | None = None
    """For ZeRO-3: bytes at the peak of the same run under ZeRO-2. None for other stages."""

    @property
    def total(self) -> int:
        """Bytes at the peak, which is in a backward pass or in the optimizer step."""
        return self.kept.peak(sum(self.passes.values()))

    def as_dict(self) -> dict[str, Any]:
        """All fields and the total as plain values, for JSON."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Workload:
    """The problems to plan for."""

    sequences: Sequences
    problems: ProblemArrays
    longest: Mapping[int, int]
    """By curriculum stage: index of the problem with the longest sequences."""


@dataclass(frozen=True)
class Planner:
    """Makes memory plans for one configuration and different micro batches."""

    config: Config
    """The configuration of the run."""
    architecture: Any
    """The Hugging Face configuration of the model."""
    rows: int
    """Number of rows of the embedding."""
    workload: Workload
    gpus: int
    """Number of ranks."""
    feed: FeedSpec | None = None
    """The feed of the checkpoint that the run starts from; None: it has none."""
    notify: Callable[[str], None] = lambda line: None
    """Receives a line before each measurement, which takes seconds."""
    on_cpu: bool = False
    """Whether the run is on a CPU, with deferred weight gradients and widths that are not rounded; for comparisons with
    measurements on a CPU."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return torch.bfloat16 if self.config.run.bf16 else torch.float32

    def plan(self, micro_batch: int, limit: float | None = None) -> MemoryPlan:
        """The plan for ``micro_batch`` problems at a time.

        Args:
            micro_batch: problems in a micro batch.
            limit: bytes on the device, to also search for the largest micro batch that fits; None: no search.
        """
        loop = self._loop()
        parameters, trained = parameter_counts(loop)
        own = self.dtype.itemsize * objective_of(self.config).kept_numbers(loop)
        kept = replace(kept_bytes(self.config, parameters, trained, self.gpus), objective=own)
        found = {stage: self._passes(stage, micro_batch) for stage in self.workload.longest}
        stage = max(found, key=lambda stage: sum(found[stage].values()))
        keys_and_values = self._cache_bytes(self.examples(stage, 1).num_tokens) * micro_batch
        largest = None
        if limit is not None:
            peak = cache(lambda size: sum(self._passes(stage, size).values()))
            largest = largest_that_fits(peak, limit - kept.total)
        zero2 = None
        if zero_stage(self.config) == 3:
            other = replace(kept_bytes(self.config, parameters, trained, self.gpus, stage=2), objective=own)
            zero2 = other.peak(sum(found[stage].values()))
        return MemoryPlan(parameters, trained, micro_batch, kept, found[stage], stage, keys_and_values, largest, zero2)

    def examples(self, stage: int, count: int) -> Examples:
        """The views of ``count`` copies of the longest problem of a stage."""
        work = self.workload
        indices = [work.longest[stage]] * count
        return objective_of(self.config).examples(work.sequences, 0, stage, work.problems, indices)

    def _loop(self) -> LatentLoop:
        defers = self.on_cpu or bool(self.config.training.defer_gradients)
        return build_loop(self.config, self.architecture, self.rows, self.feed, self.dtype, defers)

    def _passes(self, stage: int, micro_batch: int) -> dict[str, int]:
        widths = 1 if self.on_cpu else CUDA_WIDTHS
        self.notify(f"measuring the passes of stage {stage} with a micro batch of {micro_batch}")
        found = update_bytes(self.config, self._loop(), self.examples(stage, micro_batch), widths)
        return {part: found[part] for part in PARTS}

    def _cache_bytes(self, length: int) -> int:
        text = self.architecture.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * text.num_hidden_layers * heads * size * length * self.dtype.itemsize)


def kept_bytes(config: Config, parameters: int, trained: int, ranks: int, stage: int | None = None) -> KeptBytes:
    """The bytes that stay allocated on each rank: the table at the top of this file, with offloading applied.

    Args:
        config: of the run.
        parameters: number of parameters.
        trained: how many of them are trained.
        ranks: number of ranks.
        stage: a ZeRO stage instead of that of the engine's file.
    """
    values = read_engine_file(config).get("zero_optimization", {})
    stage, size = int(values.get("stage", 0)) if stage is None else stage, 2 if config.run.bf16 else 4
    bucket = int(values.get("reduce_bucket_size", DEFAULT_BUCKET))
    share = math.ceil(trained / ranks)
    weights = size * (math.ceil(parameters / ranks) if stage == 3 else parameters)
    offloads_weights = stage == 3 and offloads(values, "offload_param")
    gathered = size * _gathered(config, values, parameters) if stage == 3 and (ranks > 1 or offloads_weights) else 0
    gradients = {0: size * trained, 1: (4 if size == 4 else 6) * trained}.get(stage, 4 * share)
    optimizer = 12 * share if stage else 8 * trained
    # Stage 3 reduces in fp32, the type in which it accumulates gradients here; stage 1 has no bucket in bf16.
    buckets = bucket * {0: 0, 1: 0 if size == 2 else 4, 2: size, 3: 4}[stage]
    host = 0
    if offloads(values, "offload_optimizer"):
        host, optimizer, gradients = optimizer + gradients, 0, 0
    if offloads_weights:
        host, weights = host + weights, 0
    at_step, start = 4 * share if stage and optimizer else 0, 0
    if objective_of(config).keeps_start:
        start = size * (share if stage == 3 else trained)
        host, start = (host + start, 0) if offloads_weights else (host, start)
    return KeptBytes(weights, gathered, gradients, optimizer, buckets, at_step, host, start)


def _gathered(config: Config, zero: Mapping[str, Any], parameters: int) -> int:
    """How many parameters are whole at the peak under ZeRO-3; ``zero`` is the section of the engine's file."""
    method = METHODS[config.method.kind]
    if holds_weights(config) or (method.has_latents and not method.pauses):
        return parameters
    return min(parameters, int(zero.get("stage3_max_live_parameters", DEFAULT_LIVE)))


def offloads(values: Mapping[str, Any], key: str) -> bool:
    """Whether the section ``zero_optimization`` of an engine's file offloads what ``key`` names, for example
    ``offload_optimizer``."""
    return values.get(key, {}).get("device", "none") != "none"


def largest_that_fits(bytes_of: Callable[[int], int], room: float) -> int:
    """The largest micro batch whose passes take at most ``room`` bytes; 0 if a single problem takes more.

    At each moment of a pass, the bytes grow linearly with the number of rows. The peak is the maximum over all moments,
    so it is a convex function of the size: the line through two sizes is a lower bound beyond them and an upper bound
    between them. Both bounds give guesses, so the search needs few evaluations of ``bytes_of``.
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
