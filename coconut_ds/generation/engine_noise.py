"""Draws the noise of requests, and adds noise to values in the passes over several rows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from coconut_ds.generation.requests import Request
from coconut_ds.generation.rows import THOUGHT, Row
from coconut_ds.generation.uploads import upload
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.thought_noise import ThoughtNoise


class EngineNoise:
    """The noise in an engine's requests."""

    def __init__(self, loop: LatentLoop) -> None:
        self._loop = loop
        self.is_on_values = False
        """Whether a request with noise on values was ever submitted."""

    def draw(self, request: Request) -> ThoughtNoise | None:
        """The noise of a request on the model's device; None if it has none."""
        if request.noise is None:
            return None
        return request.noise.draw(request.num_thoughts, self._loop.noise_sizes, self._loop.device)

    def on_values(self, rows: Sequence[Row], only_thoughts: bool = False) -> AbstractContextManager[None]:
        """A context in which one pass over rows has their noise on values, or only rows whose input is a thought."""
        if not self.is_on_values:
            return nullcontext()
        own = [row.edits.noise.codes if row.edits.noise is not None else None for row in rows]
        applies = [not only_thoughts or row.input == THOUGHT for row in rows]
        noisy = [code is not None and one for code, one in zip(own, applies, strict=True)]
        if not any(noisy):
            return nullcontext()
        directions = self._loop.value_directions
        assert directions is not None, "the loop has no noise on values"
        known = next(code for code in own if code is not None)
        codes = torch.cat([known if code is None else code for code in own])
        return directions.adding(codes, upload([[flag] for flag in noisy], codes.device, torch.bool))
