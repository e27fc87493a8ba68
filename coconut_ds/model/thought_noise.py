"""Noise on the vectors that thoughts feed back, so that several samples of a problem think differently.

The noise of a sample depends only on its key, never on a global generator, on other samples or on ranks. So the
thinking engine, which makes the samples, and the latent loop, which computes their gradients, apply the same noise. A
key is a text, for example ``seed/iteration/problem/sample``. GRPO, evaluation, ``load_reasoner``, server and probing
all draw their noise here.

* ``gaussian``: the k-th thought of a sample feeds v + σ·n_k instead of v, where n_k is standard normal.
* ``dropout``: every thought of a sample feeds v ∘ m / (1 - p). The mask m is drawn once for the sample and held over
  all of its thoughts; a number of it is 0 with probability p, else 1. The prompt and the answer are not masked.

* ``svp``: the value projections of all layers get noise, see ``value_directions.py``.

v is what is fed back: a state, or what the feed makes of it. With ``thinking=jacobi`` and ``looped`` the noise acts in
every pass, also on the first guess.

Shapes:
    B  samples
    L  thoughts
    D  hidden size
    N  layers
    r  size of the code of a layer (``value_directions.py``)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.model.packing import on_host
from coconut_ds.noise_kinds import ThoughtNoiseKind, noise_fault

Noise = ThoughtNoiseKind | Literal["svp"]


class NoiseSizes(NamedTuple):
    """What the sizes of the noise of a sample are."""

    width: int
    """D."""
    code: tuple[int, int] = (0, 0)
    """(N, r); read only with ``svp``."""


@dataclass(frozen=True)
class ThoughtNoise:
    """The noise of B samples: each vector v that a thought feeds becomes v ∘ factor + term, computed in fp32."""

    factor: Tensor | None = None
    """[B, 1, D] in fp32; None: 1."""
    term: Tensor | None = None
    """[B, L, D] in fp32; None: 0."""
    codes: Tensor | None = None
    """[B, N, r] in fp32, codes of the noise on values; None: there is none."""

    def to(self, device: torch.device) -> "ThoughtNoise":
        """The same noise on ``device``; the host does not wait for the copy."""
        parts = (self.factor, self.term, self.codes)
        return ThoughtNoise(*(None if each is None else each.to(device, non_blocking=True) for each in parts))

    @property
    def changes_thoughts(self) -> bool:
        """Whether ``factor`` or ``term`` changes what is fed back."""
        return self.factor is not None or self.term is not None

    def on_columns(self, vectors: Tensor, first: int) -> Tensor:
        """The noisy vectors [B, Q, D] of the thoughts ``first`` to ``first + Q - 1`` of all samples."""
        end = first + vectors.shape[1]
        return self._on(vectors, self.factor, None if self.term is None else self.term[:, first:end])

    def on_one(self, sample: int, thought: int, vector: Tensor) -> Tensor:
        """The noisy vector [D] of one thought of one sample."""
        factor = None if self.factor is None else self.factor[sample, 0]
        return self._on(vector, factor, None if self.term is None else self.term[sample, thought])

    @staticmethod
    def _on(vectors: Tensor, factor: Tensor | None, term: Tensor | None) -> Tensor:
        noisy = vectors.float()
        noisy = noisy if factor is None else noisy * factor
        return (noisy if term is None else noisy + term).to(vectors.dtype)


@dataclass(frozen=True)
class NoiseSettings:
    """How to draw noise."""

    kind: Noise = "none"
    """``none``, ``gaussian``, ``dropout``, or ``svp``, for which a model must be prepared as for GRPO."""
    sigma: float = 0.0
    """Standard deviation of ``gaussian``."""
    dropout: float = 0.0
    """Probability of a zero in the mask of ``dropout``."""

    @classmethod
    def of(cls, kind: str, sigma: float | None, dropout: float | None) -> "NoiseSettings":
        """The settings with the values of ``thought_noise``, ``thought_sigma`` and ``thought_dropout``.

        Raises:
            DataError: a value is out of range, or does not belong to this kind of noise.
        """
        if fault := noise_fault(kind, sigma, dropout):
            raise DataError(fault)
        return cls(cast(Noise, kind), sigma or 0.0, dropout or 0.0)

    @property
    def shown(self) -> dict[str, Any]:
        """The same values by their names, for results; without noise there are none."""
        sizes = {"gaussian": {"thought_sigma": self.sigma}, "dropout": {"thought_dropout": self.dropout}}
        return {} if self.kind == "none" else {"thought_noise": self.kind, **sizes.get(self.kind, {})}

    def draw(
        self, keys: Sequence[str], num_thoughts: int, sizes: NoiseSizes, pinned: bool = False
    ) -> ThoughtNoise | None:
        """The noise of the samples with these keys, in the memory of the host; None if there is none.

        Args:
            keys: [B] one text for each sample.
            num_thoughts: L. The first thoughts of a sample get the same noise for any L.
            sizes: of the noise of a sample.
            pinned: whether the tensors are in pinned memory.
        """
        if self.kind == "none" or not num_thoughts:
            return None
        generators = [np.random.Generator(np.random.Philox(key=_philox_key(f"{self.kind}/{key}"))) for key in keys]
        if self.kind == "gaussian":
            drawn = [each.standard_normal((num_thoughts, sizes.width), np.float32) for each in generators]
            return ThoughtNoise(term=on_host(np.stack(drawn) * np.float32(self.sigma), pinned))
        if self.kind == "svp":
            return ThoughtNoise(
                codes=on_host(np.stack([each.standard_normal(sizes.code, np.float32) for each in generators]), pinned)
            )
        kept = [each.random((1, sizes.width), np.float32) >= self.dropout for each in generators]
        return ThoughtNoise(factor=on_host(np.stack(kept).astype(np.float32) / np.float32(1 - self.dropout), pinned))


NO_NOISE = NoiseSettings()


@dataclass(frozen=True)
class SampleNoise:
    """The noise of one sample of a problem. The engine draws it when the sample gets a slot."""

    settings: NoiseSettings
    source: str
    """What tells its key from those of other problems, for example ``seed/problem``."""
    sample: int = 0
    """Number of the sample, from 0."""

    @property
    def key(self) -> str:
        """The key that the noise is a function of."""
        return f"{self.source}/{self.sample}"

    def draw(self, num_thoughts: int, sizes: NoiseSizes, device: torch.device) -> ThoughtNoise | None:
        """The noise of this sample alone (B = 1) on ``device``; None if there is none."""
        drawn = self.settings.draw([self.key], num_thoughts, sizes, pinned=device.type != "cpu")
        return None if drawn is None else drawn.to(device)


def _philox_key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
