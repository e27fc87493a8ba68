"""``grpo``: reinforcement learning of sampled completions, whose thoughts are explored (GRPO, arXiv 2402.03300).

The model samples G completions of each problem; a reward says how good each one is. The advantage A of a completion is
its reward less the mean of the problem's completions. Its tokens learn by a clipped surrogate and stay near the model
that the run started from (``policy.py``). The update replays each completion: its thoughts are computed again with the
same noise (``model/thought_noise.py``), and gradients flow through all of them.

Completions are made by ``training/rollouts.py``, and advantages and weights by ``training/advantages.py``; this file
computes the loss of completions that are given.

Shapes:
    B  completions in a micro batch
    K  completions in a mini-batch, on all ranks
    N  target tokens in a micro batch
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.loss import LOGITS_AT_A_TIME, sum_over_targets
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.model.packing import on_host, packed, viewed
from coconut_ds.model.thought_noise import NoiseSettings, NoiseSizes, ThoughtNoise
from coconut_ds.model.value_directions import ValueDirections, value_projections
from coconut_ds.objectives.base import Examples, Objective
from coconut_ds.objectives.policy import Clipping, Policy, Tokens, chosen, clipped_sums
from coconut_ds.settings import Config

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Completions(Examples):
    """The completions of a mini-batch; ``views`` has one view, with a target for each sampled token."""

    advantages: Floats
    """[K] advantage of each completion."""
    weights: Floats
    """[K] weight in the loss of each token of each completion."""
    keys: tuple[str, ...]
    """[K] keys of the noise in the thoughts (``model/thought_noise.py``); empty: there is none."""
    sizes: NoiseSizes
    """Of the noise."""
    banned: tuple[int, ...]
    """Ids of tokens that are never sampled."""
    is_only_update: bool
    """Whether no other update uses completions of the same weights."""
    assumed: float | None = None
    """Log probability of all tokens under the model that the run started from, where none is computed
    (``coconut-plan``); None: it is set before the update."""


@dataclass(frozen=True)
class TokenColumns:
    """What is known of the target tokens of a micro batch before anything is computed; views of one buffer."""

    shares: Tensor
    """[N] weight of each token in a mean over all tokens of the mini-batch; 0 for copies."""
    advantages: Tensor
    """[N] advantage of each token's completion."""
    banned: Tensor
    """[k] int64, ids of tokens that are never sampled."""


@dataclass(frozen=True)
class GrpoBatch:
    """The tensors of a micro batch."""

    batch: Batch
    """``Targets.weights`` are the weights of the tokens in the loss."""
    columns: TokenColumns
    buffer: Tensor
    """Of ``columns``, as that of ``collate.Batch``."""
    noise: ThoughtNoise | None
    is_only_update: bool
    """See ``Completions``."""
    old: Tensor | None = field(default=None)
    """[N] log probabilities under the model that sampled; None with ``is_only_update``."""
    reference: Tensor | None = field(default=None)
    """[N] log probabilities under the model that the run started from; None without KL divergence."""

    def to(self, device: torch.device) -> "GrpoBatch":
        """The same tensors on ``device``; the host does not wait for the copies."""
        if self.buffer.device == device:
            return self
        noise, buffer = None if self.noise is None else self.noise.to(device), self.buffer.to(device, non_blocking=True)
        # The log probabilities are computed on the device; only ``coconut-plan`` assumes some before.
        old, reference = (
            None if each is None else each.to(device, non_blocking=True) for each in (self.old, self.reference)
        )
        moved = replace(self, columns=viewed(self.columns, buffer), buffer=buffer, old=old, reference=reference)
        return replace(moved, batch=self.batch.to(device), noise=noise)


class Grpo(Objective):
    """The clipped surrogate of completions, and their KL divergence from the start of the run."""

    parts: ClassVar[tuple[str, ...]] = ("policy", "kl")
    measures: tuple[str, ...] = ("kl", "clip_fraction", "entropy")
    samples: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = config.objective.grpo
        high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        self._clipping = Clipping(settings.epsilon, high, settings.beta)
        self.exploration = NoiseSettings(settings.exploration, settings.sigma, settings.dropout)

    @property
    def keeps_start(self) -> bool:
        """Whether the KL divergence needs the weights that the run started from."""
        return self._clipping.beta > 0

    def kept_numbers(self, loop: LatentLoop) -> int:
        """The singular values and vectors of all value projections (``model/value_directions.py``)."""
        if self.exploration.kind != "svp":
            return 0
        width = int(loop.model.config.get_text_config().hidden_size)
        sizes = [each.size for each in value_projections(loop.model)]
        return sum(min(width, size) * (width + 1 + size) for size in sizes)

    def equip(self, loop: LatentLoop) -> LatentLoop:
        """The loop, ready for noise on values."""
        if self.exploration.kind == "svp":
            loop.value_directions = ValueDirections(loop.model, self.config.objective.grpo.svp_scale)
        return loop

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> Completions:
        """The given solutions as if the model had sampled them, each with advantage 1; for ``coconut-plan``."""
        views = super().examples(sequences, epoch, stage, problems, indices).views
        weights = np.full(len(indices), 1 / max(1, int(views[0].num_targets.sum())))
        assumed = 0.0 if self.keeps_start else None
        return Completions(views, np.ones(len(indices)), weights, (), NoiseSizes(0), (), True, assumed)

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> GrpoBatch:
        """See ``Objective``."""
        assert isinstance(examples, Completions)
        (view,) = views
        counts = float(view.share > 0)
        weights = examples.weights[view.rows] * counts
        batch = collator.collate(replace(view, weights=weights.tolist()))
        numbers = view.layouts.num_targets
        total = max(1, int(examples.views[0].num_targets.sum()))
        noise = None
        if examples.keys:
            keys = [examples.keys[row] for row in view.rows]
            noise = self.exploration.draw(keys, view.num_thoughts, examples.sizes, collator.pinned)
        assumed = None
        if examples.assumed is not None:
            assumed = on_host(np.full(int(numbers.sum()), examples.assumed, np.float32), collator.pinned)
        buffer, tensors = packed(
            {
                np.dtype(np.int64): {"banned": np.array(examples.banned, np.int64)},
                np.dtype(np.float32): {
                    "shares": np.full(int(numbers.sum()), counts / total, np.float32),
                    "advantages": np.repeat(examples.advantages[view.rows], numbers).astype(np.float32),
                },
            },
            collator.pinned,
        )
        return GrpoBatch(batch, TokenColumns(**tensors), buffer, noise, examples.is_only_update, reference=assumed)

    def loss(self, loop: LatentLoop, batch: GrpoBatch) -> Tensor:
        """The two parts and the three measures, [5]."""
        targets = batch.batch.targets
        # A column that is not read: chunks need some tensor.
        unread = batch.columns.advantages
        tokens = Tokens(
            targets.ids,
            batch.columns.advantages,
            unread if batch.old is None else batch.old,
            unread if batch.reference is None else batch.reference,
        )
        assert batch.is_only_update or batch.old is not None, "the completions were not replayed before the update"
        assert batch.reference is not None or not self.keeps_start, "the completions were not replayed at the start"
        compute = partial(clipped_sums, loop.head, self._policy(batch), self._clipping, batch.is_only_update)
        weights = torch.stack([targets.weights, batch.columns.shares], dim=1)
        return sum_over_targets(
            compute, loop.vocabulary, targets.max_targets, weights, predictors(loop, batch), *tokens
        )

    @torch.no_grad()
    def log_probabilities(self, loop: LatentLoop, batch: GrpoBatch) -> Tensor:
        """Log probabilities [N] of the tokens of a micro batch on the loop's device. All ranks call it together."""
        states, ids, most = predictors(loop, batch), batch.batch.targets.ids, batch.batch.targets.max_targets
        size = max(1, LOGITS_AT_A_TIME // loop.vocabulary)
        found = []
        for start in range(0, most, size):
            # A rank that has no targets left computes its first one again.
            part = slice(start, start + size) if start < len(ids) else slice(0, 1)
            each = chosen(loop.head, self._policy(batch), states[part], ids[part])
            found += [each] if start < len(ids) else []
        return torch.cat(found)

    def _policy(self, batch: GrpoBatch) -> Policy:
        return Policy(self.config.objective.grpo.temperature, batch.columns.banned)


def predictors(loop: LatentLoop, batch: GrpoBatch) -> Tensor:
    """[N, D] the states that predict the tokens of a micro batch, computed with the noise of its completions."""
    inputs, targets = batch.batch
    return loop.encode(inputs, all_states=False, noise=batch.noise).flatten(0, 1)[targets.index]
