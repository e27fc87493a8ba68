"""A feed for the tests, every part of which changes what it makes."""

from dataclasses import replace
from pathlib import Path

import torch
from making import make_backbone, make_card

from coconut_ds.model.backbone import Backbone
from coconut_ds.model.checkpoint import save_model
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


def save_with_feed(folder: Path) -> Backbone:
    """Saves a random model whose thoughts go through a feed, and returns it."""
    backbone = make_backbone()
    backbone.feed = make_feed()
    card = replace(make_card(backbone), feed=SPEC)
    state, feed = backbone.model.state_dict(), backbone.feed.state_dict()
    save_model(folder, backbone.model, state, backbone.tokenizer, card, feed)
    return backbone
