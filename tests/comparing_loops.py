"""Compares the latent loop with the slow one, for its tests."""

import pytest
import torch
from making_layouts import jacobi
from slow_loop import slow_loss, unchanged

from coconut_ds.methods.layout import Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import collate
from coconut_ds.model.feed import Feed
from coconut_ds.model.latent_loop import LatentLoop, latent_loss


def compare(
    model: torch.nn.Module,
    layouts: list[Layout],
    weights: list[float],
    extra_passes: int = 0,
    checkpointing: bool = False,
    iterations: tuple[int | None, int | None] = (None, None),
    feed: Feed | None = None,
    parallel: Parallel | None = None,
) -> None:
    """Both loops give the same loss and the same gradients.

    Args:
        model: whose gradients are replaced.
        layouts: one for each row of the batch.
        weights: of the rows.
        extra_passes: passes over thoughts that no row needs.
        checkpointing: activation checkpointing in the latent loop.
        iterations: Jacobi iterations of the latent loop and of the slow one; None: sequential thoughts.
        feed: what thoughts go through; its gradients are compared too.
        parallel: the way in which both compute all thoughts at once, in place of ``iterations``.
    """
    loop = LatentLoop(model, checkpointing, feed=feed)
    ways = [jacobi(each) if parallel is None else parallel for each in iterations]
    thoughts = max(layout.num_thoughts for layout in layouts) + extra_passes
    results = []
    for compute in (
        lambda: latent_loss(loop, *collate(layouts, weights, thoughts, pad_id=3, parallel=ways[0])),
        lambda: slow_loss(model, layouts, weights, ways[1], feed or unchanged),
    ):
        # To zero, not to None: without thoughts, a feed has no gradient in the slow loop.
        loop.zero_grad(set_to_none=False)
        value = compute()
        value.backward()
        results.append((value.item(), {name: p.grad.clone() for name, p in loop.named_parameters()}))
    (fast, fast_grads), (slow, slow_grads) = results
    assert fast == pytest.approx(slow, rel=1e-5, abs=1e-6)
    for name, gradient in slow_grads.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(fast_grads[name], gradient, rtol=1e-3, atol=2e-5 * scale, msg=name)
