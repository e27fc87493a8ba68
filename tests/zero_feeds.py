"""Trains a model whose thoughts go through a feed, for ``zero_worker.py`` and the test that reads its results."""

from pathlib import Path

import torch
from making_feeds import make_feed

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import is_sharded
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.backbone import Backbone, build_backbone
from coconut_ds.model.collate import collate
from coconut_ds.model.feed import Feed, feed_state
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine import Engine
from coconut_ds.training.engine_file import zero_stage

VARIANTS = ("zero2", "zero3_held0", "zero3_live0")
PLAIN = [Layout([2, 3, 4, 5], [IGNORE, IGNORE, 4, 5], 4, 0)] * 2
"""Two rows without thoughts."""
THINKING = [
    Layout([2, 3, 4, 4, 5, 3], [IGNORE] * 4 + [5, 3], 2, 2),
    Layout([3, 4, 2, 4, 4, 2], [IGNORE] * 4 + [4, 2], 3, 1),
]
"""Two rows, with two thoughts and with one."""
PROMPT = Layout([2, 3, 4, 4, 5], [IGNORE] * 5, 2, 2)
LR = 1e-2


def parts(config: Config) -> tuple[Backbone, Feed]:
    """A small model and a feed for its thoughts, always the same ones."""
    torch.manual_seed(0)
    backbone = build_backbone(config.model, build_word_tokenizer(["1 2 3 4"]))
    return backbone, make_feed(config.model.model_config_overrides["n_embd"])


def fed(config: Config, folder: Path, ranks: Ranks) -> dict:
    """Updates on ``PLAIN`` and on ``THINKING``, then generates; under ZeRO-3 also resumes from ``folder``."""

    def new_engine() -> tuple[Engine, Feed]:
        backbone, feed = parts(config)
        loop = LatentLoop(backbone.model, defer_gradients=zero_stage(config) < 3, feed=feed)
        return Engine(loop, config, BatchGeometry(2, 2 // ranks.size, 1, ranks.size), ranks), feed

    engine, feed = new_engine()
    mine, updates = slice(ranks.rank, None, ranks.size), []
    for rows, thoughts in ((PLAIN, 0), (THINKING, 2)):
        made = engine.update([collate(rows[mine], [0.5] * (2 // ranks.size), thoughts, 0)], LR)
        updates.append([made.loss, made.grad_norm])
    sharded = all(map(is_sharded, feed.parameters()))
    engine.train(False)
    tokens = engine(generate, [Request(PROMPT, 4)], [0])[0].tokens
    state = feed_state(feed, ranks.is_first)
    weights = {name: value.float().tolist() for name, value in state.items()}
    if sharded:
        folder.mkdir(exist_ok=True)
        snapshot = engine.snapshot(folder)
        snapshot.encode()
        snapshot.write(folder)
        ranks.wait()
        engine, feed = new_engine()
        engine.load_state(folder, same_ranks=True)
    again = feed_state(feed, ranks.is_first)
    resumed = all(torch.equal(again[name], value) for name, value in state.items())
    return {"updates": updates, "sharded": sharded, "tokens": tokens, "weights": weights, "resumed": resumed}
