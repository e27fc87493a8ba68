"""What is fed back in place of a request's own thoughts: noise is added first, then ``edit_thought`` is called.

Shapes:
    n  thoughts that are computed together
    D  hidden size
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from coconut_ds.generation.requests import Request
from coconut_ds.model.thought_noise import ThoughtNoise

Draw = Callable[[Request], ThoughtNoise | None]
"""Draws the noise of a request; None if it has none."""


class Edits:
    """The changes of one request."""

    def __init__(self, request: Request, draw: Draw) -> None:
        self._request, self._draw = request, draw

    @cached_property
    def noise(self) -> ThoughtNoise | None:
        """The noise, drawn when it is first needed and forgotten with this object; None if there is none."""
        return self._draw(self._request)

    @property
    def are_any(self) -> bool:
        """Whether what is fed back is changed."""
        has_noise = self.noise is not None and self.noise.changes_thoughts
        return has_noise or self._request.edit_thought is not None

    def of_one(self, index: int, vector: Tensor) -> Tensor:
        """What is fed back for thought ``index`` instead of ``vector`` [D], which stays as it is."""
        if self.noise is not None and self.noise.changes_thoughts:
            vector = self.noise.on_one(0, index, vector)
        return vector if self._request.edit_thought is None else self._request.edit_thought(index, vector)

    def of_several(self, first: int, vectors: Tensor) -> Tensor:
        """The same [n, D] for the thoughts from ``first`` on, whose own vectors [n, D] are given."""
        if not self.are_any:
            return vectors
        edited = [self.of_one(first + i, vector) for i, vector in enumerate(vectors)]
        return torch.stack([vector.to(vectors).expand_as(vectors[0]) for vector in edited])
