"""Changes of single thoughts: what is fed back in place of what the model thought.

Sources: zero, mean and patching ablations as usual in interpretability (Vig et al. 2020, arXiv 2004.12265; Meng et al.
2022, arXiv 2202.05262), noise and swaps of thoughts as in the criticism of continuous thoughts (arXiv 2512.21711,
2604.04902, 2604.06374).

After a change the later thoughts are *recomputed* from what was fed (the whole effect), or *kept* as the untouched
model thought them (the effect that does not pass through them). ``drop`` and ``repeat`` always keep them: leaving out a
thought and recomputing the others is but thinking less. Where thoughts come all at once a changed one is held in every
pass; with fewer passes than thoughts that is a change in itself, even at its last value (``scale`` by 1 measures it).

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
    """What is done to a thought."""

    ZERO = "zero"
    """Becomes the zero vector."""
    MEAN = "mean"
    """Becomes the mean of that thought over reference questions."""
    NOISE = "noise"
    """Gets a random direction added, ``strength`` times its norm long."""
    RANDOM = "random"
    """Becomes a random direction of its norm."""
    PATCH = "patch"
    """Becomes that thought of another question."""
    TOKEN = "token"
    """Becomes the input embedding of a token."""
    SCALE = "scale"
    """Is multiplied by ``strength``."""
    SWAP = "swap"
    """Changes places with the thought ``other``."""
    REPEAT = "repeat"
    """Is fed twice."""
    DROP = "drop"
    """Is left out."""


DRAWN = (Kind.NOISE, Kind.RANDOM)
"""Kinds whose outcome depends on draws."""
LENGTHENING = (Kind.REPEAT, Kind.DROP)
"""Kinds that change the number of positions."""


@dataclass(frozen=True)
class Intervention:
    """A change of one thought."""

    kind: Kind
    thought: int = 1
    """From 1."""
    strength: float = 1.0
    """``noise``: length relative to the thought's norm; ``scale``: factor."""
    other: int | None = None
    """``swap``: the other thought."""
    token: str | None = None
    """``token``: one token."""
    donor: str | None = None
    """``patch``: the other question; None: reference questions with another answer."""
    draws: int = 1
    """Of ``noise`` and ``random``; of donors, where there are several."""
    seed: int = 0
    later: Literal["recomputed", "kept"] = "recomputed"
    """What becomes of the thoughts after it."""

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
            raise DataError(f"other={self.other}: kind=swap needs another thought than {self.thought}, 1 or more")
        if self.kind is Kind.TOKEN and self.token is None:
            raise DataError("token: missing; kind=token needs one, e.g. token=5")

    @property
    def name(self) -> str:
        """A short name for tables, without the thought's number."""
        detail = {
            Kind.NOISE: f" ×{self.strength:g}",
            Kind.SCALE: f" ×{self.strength:g}",
            Kind.SWAP: f" with {self.other}",
            Kind.TOKEN: f" {self.token}",
        }.get(self.kind, "")
        return f"{self.kind}{detail}{', later kept' if self.later == 'kept' else ''}"


@dataclass(frozen=True, eq=False)
class Material:
    """Vectors that a change takes from elsewhere."""

    mean: Tensor | None = None
    """[L, D] of reference questions."""
    donor: Tensor | None = None
    """[L, D] thoughts of another question."""
    token: Tensor | None = None
    """[D]"""


NOTHING = Material()


def change(
    case: Case, own: Tensor, what: Intervention, material: Material = NOTHING, draw: int = 0, salt: str = ""
) -> Case:
    """The case with a changed thought.

    Args:
        case: left alone so far.
        own: [L, D] its thoughts.
        what: the change.
        material: what it needs from elsewhere.
        draw: number of the draw.
        salt: tells draws of several questions apart.

    Raises:
        DataError: there is no such thought.
    """
    count, index = len(own), what.thought - 1
    for number in (what.thought, what.other or 1):
        if number > count:
            raise DataError(f"thought={number}: there are {count}; expected 1 to {count}")
    if what.kind is Kind.DROP:
        return case.resized([*own[:index], *own[index + 1 :]])
    if what.kind is Kind.REPEAT:
        return case.resized([*own[: index + 1], *own[index:]])
    given = _replaced(own, what, material, draw, salt)
    if what.later == "kept":
        given = {later: own[later] for later in range(min(given), count)} | given
    return case.changed(given)


def _replaced(own: Tensor, what: Intervention, material: Material, draw: int, salt: str) -> dict[int, Tensor]:
    """By index the vectors [D] that replace thoughts."""
    index = what.thought - 1
    if what.kind is Kind.SWAP:
        assert what.other is not None
        return {index: own[what.other - 1], what.other - 1: own[index]}
    return {index: _vector(own, what, material, f"{what.seed}/{salt}/{draw}")}


def _vector(own: Tensor, what: Intervention, material: Material, key: str) -> Tensor:
    index = what.thought - 1
    thought = own[index]
    if what.kind is Kind.SCALE:
        return thought * what.strength
    if what.kind is Kind.NOISE:
        return thought + random_direction(key, len(thought)) * thought.norm() * what.strength
    if what.kind is Kind.RANDOM:
        return random_direction(key, len(thought)) * thought.norm()
    taken: Mapping[Kind, Tensor | None] = {
        Kind.ZERO: torch.zeros_like(thought),
        Kind.MEAN: None if material.mean is None else material.mean[index],
        Kind.PATCH: None if material.donor is None else material.donor[index],
        Kind.TOKEN: material.token,
    }
    vector = taken[what.kind]
    assert vector is not None, f"{what.kind} has its material"
    return vector


def random_direction(key: str, width: int) -> Tensor:
    """[width] a unit vector drawn evenly from all directions; a function of ``key`` alone."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()
