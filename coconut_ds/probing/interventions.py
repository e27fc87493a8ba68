"""Interventions on single thoughts: which vector is fed back in place of the model's own thought.

Sources: zero ablation, mean ablation and activation patching are standard in interpretability (Vig et al. 2020, arXiv
2004.12265; Meng et al. 2022, arXiv 2202.05262); noise and swapped thoughts are used in critical studies of continuous
thoughts (arXiv 2512.21711, 2604.04902, 2604.06374).

After a change, the later thoughts are either *recomputed* from the changed one (the total effect) or *kept* as in the
baseline (the direct effect, which does not pass through them). ``drop`` and ``repeat`` always keep them, because
dropping a thought and recomputing the later ones would be the same as thinking less. If all thoughts are computed at
once, a changed thought is held fixed in every pass. With ``thinking=looped``, or ``jacobi`` and fewer passes than
thoughts, this is a change in itself, even if the thought is held at its final value; ``scale`` by 1 measures it.

If thoughts go through a feed, an intervention changes what the feed makes of a thought: the vector that the next
position reads as its input embedding.

Legend: ``L`` thoughts, ``D`` hidden size.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.probing.cases import Case


class Kind(StrEnum):
    """How a thought is changed."""

    ZERO = "zero"
    """Zero ablation: replaces the thought by the zero vector."""
    MEAN = "mean"
    """Mean ablation: replaces the thought by its mean over reference questions."""
    NOISE = "noise"
    """Adds a random vector whose norm is ``strength`` times that of the thought."""
    RANDOM = "random"
    """Replaces the thought by a random vector of the same norm."""
    PATCH = "patch"
    """Activation patching: replaces the thought by the same thought of another question."""
    TOKEN = "token"
    """Replaces the thought by the input embedding of a token."""
    SCALE = "scale"
    """Multiplies the thought by ``strength``."""
    SWAP = "swap"
    """Swaps the thought with the thought ``other``."""
    REPEAT = "repeat"
    """Feeds the thought twice."""
    DROP = "drop"
    """Leaves the thought out."""


RANDOM_KINDS = (Kind.NOISE, Kind.RANDOM)
"""Kinds that are random, so that several draws make sense."""


@dataclass(frozen=True)
class Intervention:
    """A change of one thought."""

    kind: Kind
    thought: int = 1
    """Number of the thought to change, from 1."""
    strength: float = 1.0
    """For ``noise``: norm of the noise relative to that of the thought; for ``scale``: the factor."""
    other: int | None = None
    """For ``swap``: number of the other thought, from 1."""
    token: str | None = None
    """For ``token``: text of a single token."""
    donor: str | None = None
    """For ``patch``: the question whose thought is used; None: reference questions with a different answer."""
    draws: int = 1
    """Number of draws of ``noise`` and ``random``, and largest number of donors of ``patch``."""
    seed: int = 0
    """Seed of the random draws."""
    later: Literal["recomputed", "kept"] = "recomputed"
    """Whether the thoughts after the changed one are recomputed from it, or kept as in the baseline."""

    def __post_init__(self) -> None:
        if self.kind not in list(Kind):
            raise DataError(f"kind={self.kind}: expected one of {', '.join(Kind)}")
        if self.thought < 1:
            raise DataError(f"thought={self.thought}: expected 1 (the first) or more")
        if self.draws < 1:
            raise DataError(f"draws={self.draws}: expected 1 or more")
        if self.later not in ("recomputed", "kept"):
            raise DataError(f"later={self.later}: expected recomputed or kept")
        if self.kind is Kind.SWAP and (self.other is None or self.other < 1 or self.other == self.thought):
            raise DataError(f"other={self.other}: kind=swap needs a thought other than {self.thought}, 1 or more")
        if self.kind is Kind.TOKEN and self.token is None:
            raise DataError("token: missing; kind=token needs one, e.g. token=5")

    @property
    def name(self) -> str:
        """A short name for tables and figures, without the number of the thought."""
        detail = {
            Kind.NOISE: f" ×{self.strength:g}",
            Kind.SCALE: f" ×{self.strength:g}",
            Kind.SWAP: f" with {self.other}",
            Kind.TOKEN: f" {self.token}",
        }.get(self.kind, "")
        return f"{self.kind}{detail}{', later kept' if self.later == 'kept' else ''}"


@dataclass(frozen=True, eq=False)
class Material:
    """The vectors that an intervention needs in addition to the question's own thoughts."""

    mean: Tensor | None = None
    """[L, D] mean thoughts over reference questions, for ``mean``."""
    donor: Tensor | None = None
    """[L, D] thoughts of the donor question, for ``patch``."""
    token: Tensor | None = None
    """[D] input embedding of the token, for ``token``."""


NO_MATERIAL = Material()


def change(
    case: Case, own: Tensor, intervention: Intervention, material: Material = NO_MATERIAL, draw: int = 0, salt: str = ""
) -> Case:
    """Applies an intervention to a case.

    Args:
        case: the case, without any change.
        own: [L, D] the thoughts of the case, as they are fed back.
        intervention: the intervention.
        material: the vectors that the intervention needs in addition.
        draw: number of the draw, from 0; each draw has different random numbers.
        salt: part of the random seed, to give different questions different random numbers.

    Raises:
        DataError: the thought to change does not exist.
    """
    count, index = len(own), intervention.thought - 1
    for number in (intervention.thought, intervention.other or 1):
        if number > count:
            raise DataError(f"thought={number}: there are {count}; expected 1 to {count}")
    if intervention.kind is Kind.DROP:
        return case.resized([*own[:index], *own[index + 1 :]])
    if intervention.kind is Kind.REPEAT:
        return case.resized([*own[: index + 1], *own[index:]])
    given = _replaced(own, intervention, material, draw, salt)
    if intervention.later == "kept":
        given = {later: own[later] for later in range(min(given), count)} | given
    return case.changed(given)


def _replaced(own: Tensor, intervention: Intervention, material: Material, draw: int, salt: str) -> dict[int, Tensor]:
    """The vectors [D] that replace thoughts, by the index of the thought (from 0)."""
    index = intervention.thought - 1
    if intervention.kind is Kind.SWAP:
        assert intervention.other is not None
        return {index: own[intervention.other - 1], intervention.other - 1: own[index]}
    return {index: _vector(own, intervention, material, f"{intervention.seed}/{salt}/{draw}")}


def _vector(own: Tensor, intervention: Intervention, material: Material, key: str) -> Tensor:
    """[D] the vector that replaces the thought; ``key`` is the random seed."""
    index = intervention.thought - 1
    thought = own[index]
    if intervention.kind is Kind.SCALE:
        return thought * intervention.strength
    if intervention.kind is Kind.NOISE:
        return thought + random_direction(key, len(thought)) * thought.norm() * intervention.strength
    if intervention.kind is Kind.RANDOM:
        return random_direction(key, len(thought)) * thought.norm()
    taken: Mapping[Kind, Tensor | None] = {
        Kind.ZERO: torch.zeros_like(thought),
        Kind.MEAN: None if material.mean is None else material.mean[index],
        Kind.PATCH: None if material.donor is None else material.donor[index],
        Kind.TOKEN: material.token,
    }
    vector = taken[intervention.kind]
    assert vector is not None, f"{intervention.kind} needs its material"
    return vector


def random_direction(key: str, width: int) -> Tensor:
    """[width] a unit vector drawn uniformly from all directions; it depends only on ``key`` and ``width``."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()
