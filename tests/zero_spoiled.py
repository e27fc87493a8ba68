"""An update whose loss or gradient is not finite, for ``zero_worker.py``."""

import torch

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import NonFiniteError
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.objectives import likelihood
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine import Engine
from coconut_ds.training.engine_file import zero_stage

LAYOUT = Layout([2, 3, 4, 5], [IGNORE, IGNORE, 4, 5], 4, 0)


class NotANumberBackwards(torch.autograd.Function):
    """The identity, with a gradient of NaN."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def some_engine(config: Config, ranks: Ranks) -> Engine:
    """An engine with a model from scratch."""
    torch.manual_seed(0)
    backbone = build_backbone(config.model, build_word_tokenizer(["1 2 3 4"]))
    loop = LatentLoop(backbone.model, defer_gradients=zero_stage(config) < 3)
    return Engine(loop, config, BatchGeometry(2 * ranks.size, 2, 1, ranks.size), ranks)


def spoil(config: Config, what: str, ranks: Ranks) -> dict:
    """Makes one good update, then one whose loss or gradient is not finite on the last rank."""
    engine = some_engine(config, ranks)
    share = 1 / (2 * ranks.size)
    good = [collate([LAYOUT], [share], 0, 0)]
    engine.update(good, 1e-3)
    before = engine.model_state()
    last = ranks.rank == ranks.size - 1
    batch = [collate([LAYOUT], [float("inf") if last and what == "loss" else share], 0, 0)]
    if what == "gradient" and last:
        likelihood.latent_loss = lambda *arguments: NotANumberBackwards.apply(latent_loss(*arguments))
    try:
        engine.update(batch, 1e-3)
        error = "no error"
    except NonFiniteError as found:
        error = str(found)
    finally:
        likelihood.latent_loss = latent_loss
    after = engine.model_state()
    return {"error": error, "moved": any(not torch.equal(before[name], after[name]) for name in before)}
