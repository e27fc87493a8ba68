"""A feed for the tests, every part of which changes what it makes."""

import torch

from coconut_ds.model.feed import Feed, FeedSpec, build_feed

SPEC = FeedSpec("projection", 24)


def make_feed(size: int = 32, seed: int = 5) -> Feed:
    """A projection for states of ``size`` D whose norm is neither the identity nor without a shift."""
    feed = build_feed(SPEC, size, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in feed.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return feed.eval()
