"""The feed: what a thought goes through before it becomes the next input embedding.

A thought is a hidden state of the model. In Coconut (arXiv 2412.06769) it is the next input embedding as it is; then
there is no feed, and a loop's ``feed`` is None. CODI (arXiv 2502.21074) learns a projection between the two. Only what
is fed back goes through the feed: the head, the loss and probes read the states themselves.

A further feed is a subclass of ``Feed`` and a line in ``FEEDS``.

Shapes:
    D  hidden size; also the size of an input embedding
    P  size of a feed's hidden layer
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coconut_ds.distributed.zero import whole

FEED_PREFIX = "latent/feed"
"""Begins the names of a feed's weights where they are listed together with those of the model."""


@dataclass(frozen=True)
class FeedSpec:
    """Which feed, as the card of a checkpoint stores it."""

    kind: str
    """A name in ``FEEDS``."""
    width: int
    """P, the size of its hidden layer."""

    def __str__(self) -> str:
        return f"{self.kind} of width {self.width}"

    def fault(self) -> str | None:
        """What is wrong with these values; None if a feed can be built from them."""
        if self.kind not in FEEDS:
            return f"unknown feed {self.kind!r}; expected one of {', '.join(FEEDS)}"
        return None if self.width >= 1 else f"feed width {self.width}; expected 1 or more"


class Feed(nn.Module):
    """Base class of feeds, which map states [..., D] to input embeddings [..., D] in the type of the states."""

    kind: ClassVar[str]
    """Its name in ``FEEDS``."""

    def __init__(self, size: int, width: int) -> None:
        """``size``: D; ``width``: P."""
        super().__init__()
        self.spec = FeedSpec(self.kind, width)


class Projection(Feed):
    """CODI's projection: a linear layer, the exact GELU, a linear layer and a layer norm (arXiv 2502.21074).

    Its linear layers start as torch initializes them, and its norm with ones and zeros.
    """

    kind = "projection"

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self.inner, self.outer = nn.Linear(size, width), nn.Linear(width, size)
        self.norm = nn.LayerNorm(size, eps=1e-5)

    def forward(self, states: Tensor) -> Tensor:
        """The input embeddings [..., D] that states [..., D] become."""
        made: Tensor = self.norm(self.outer(F.gelu(self.inner(states))))
        return made


FEEDS: dict[str, type[Feed]] = {each.kind: each for each in (Projection,)}
"""All feeds by name."""


def build_feed(spec: FeedSpec, size: int, seed: int) -> Feed:
    """A new feed in fp32 for states of ``size`` D.

    Its random weights follow from ``seed`` alone, so they are equal on all ranks, and torch's generators stay as they
    are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return FEEDS[spec.kind](size, spec.width)


def feed_state(feed: Feed, is_first: bool) -> dict[str, Tensor]:
    """The state dict of a feed: full tensors on the CPU, in the compute type.

    Under ZeRO-3 all ranks must call it; only rank 0 (``is_first``) receives the tensors, the result on other ranks is
    empty.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in feed.state_dict(keep_vars=True).items():
        with whole([tensor]):
            if is_first:
                state[name] = tensor.detach().cpu().clone()
    return state
