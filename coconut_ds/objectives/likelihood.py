"""``likelihood``: the cross entropy of the tokens that the method writes (arXiv 2412.06769, section 3)."""

from typing import ClassVar

from torch import Tensor

from coconut_ds.model.collate import Batch
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.objectives.base import Objective


class Likelihood(Objective):
    """Mean cross entropy of the targets."""

    parts: ClassVar[tuple[str, ...]] = ("likelihood",)

    def loss(self, loop: LatentLoop, batch: Batch) -> Tensor:
        """The cross entropy, [1]."""
        return latent_loss(loop, *batch).unsqueeze(0)

    def parts_and_states(self, loop: LatentLoop, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cross entropy, [1], and the states [B, T, D] (``LatentLoop.encode``), for objectives that add to this
        one."""
        inputs, targets = batch
        states = loop.encode(inputs, all_states=False)
        return loop.cross_entropy(states, targets).unsqueeze(0), states
