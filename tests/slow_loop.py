"""The latent loop, slow and obvious: one row at a time, no cache, the whole prefix encoded again for each thought.

``feed`` is what a state [..., D] goes through before it is fed back.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.parallel import Parallel

Feed = Callable[[Tensor], Tensor]


def unchanged(states: Tensor) -> Tensor:
    """The feed of Coconut."""
    return states


def slow_embeddings(model: PreTrainedModel, layout: Layout, feed: Feed = unchanged) -> Tensor:
    """Input embeddings [1, T, D] of a layout; thoughts are filled in one after the other."""
    embeds = model.get_input_embeddings()(torch.tensor([list(layout.input_ids)]))
    for place in range(layout.first_thought, layout.first_thought + layout.num_thoughts):
        states = model.base_model(inputs_embeds=embeds[:, :place], use_cache=False).last_hidden_state
        embeds = torch.cat([embeds[:, :place], feed(states[:, -1:]), embeds[:, place + 1 :]], dim=1)
    return embeds


def jacobi_embeddings(model: PreTrainedModel, layout: Layout, iterations: int, feed: Feed = unchanged) -> Tensor:
    """Input embeddings [1, T, D] of a layout; every iteration replaces all thoughts, first their marker's embedding.

    The result is the input of the last pass: the first thought and one replacement fewer than there are passes.
    """
    embeds = model.get_input_embeddings()(torch.tensor([list(layout.input_ids)]))
    first, end = layout.first_thought, layout.first_thought + layout.num_thoughts
    if layout.num_thoughts:
        states = model.base_model(inputs_embeds=embeds[:, :first], use_cache=False).last_hidden_state
        embeds = torch.cat([embeds[:, :first], feed(states[:, -1:]), embeds[:, first + 1 :]], dim=1)
    for _ in range(min(iterations, layout.num_thoughts) - 1):
        states = model.base_model(inputs_embeds=embeds[:, :end], use_cache=False).last_hidden_state
        embeds = torch.cat([embeds[:, :first], feed(states[:, first - 1 : end - 1]), embeds[:, end:]], dim=1)
    return embeds


def looped_embeddings(model: PreTrainedModel, layout: Layout, rounds: int, feed: Feed = unchanged) -> Tensor:
    """Input embeddings [1, T, D] of a layout; each round adds states to the embedding of their marker."""
    marked = model.get_input_embeddings()(torch.tensor([list(layout.input_ids)]))
    first, end, embeds = layout.first_thought, layout.first_thought + layout.num_thoughts, marked
    for _ in range(rounds if layout.num_thoughts else 0):
        states = model.base_model(inputs_embeds=embeds[:, :end], use_cache=False).last_hidden_state
        thoughts = marked[:, first:end] + feed(states[:, first:])
        embeds = torch.cat([marked[:, :first], thoughts, marked[:, end:]], dim=1)
    return embeds


def slow_inputs(
    model: PreTrainedModel, layout: Layout, parallel: Parallel | None = None, feed: Feed = unchanged
) -> Tensor:
    """Input embeddings [1, T, D]. ``parallel``: how all thoughts are computed at once; None: one by one."""
    if parallel is None:
        return slow_embeddings(model, layout, feed)
    if parallel.kind == "looped":
        return looped_embeddings(model, layout, parallel.rounds(layout.num_thoughts), feed)
    return jacobi_embeddings(model, layout, parallel.iterations, feed)


def slow_logits(
    model: PreTrainedModel, layout: Layout, parallel: Parallel | None = None, feed: Feed = unchanged
) -> Tensor:
    """Logits [T, V] of one row; for the arguments see ``slow_inputs``."""
    embeds = slow_inputs(model, layout, parallel, feed)
    return model(inputs_embeds=embeds, use_cache=False).logits[0]


def slow_loss(
    model: PreTrainedModel,
    layouts: list[Layout],
    weights: list[float],
    parallel: Parallel | None = None,
    feed: Feed = unchanged,
) -> Tensor:
    """Weighted sum of the cross entropies of all targets."""
    total = torch.zeros(())
    for layout, weight in zip(layouts, weights, strict=True):
        logits = slow_logits(model, layout, parallel, feed)
        labels = torch.tensor(list(layout.labels))
        total = total + weight * F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE, reduction="sum")
    return total


@torch.no_grad()
def slow_generate(
    model: PreTrainedModel, request: Request, eos_id: int, context: int = 10**6, feed: Feed = unchanged
) -> list[int]:
    """Greedy continuation, the whole sequence encoded again for each token and each thought."""
    embed = model.get_input_embeddings()
    embeds = slow_inputs(model, request.prompt, request.at_once and request.at_once.how, feed)
    tokens: list[int] = []
    thinking = request.thinking
    while len(tokens) < request.max_new_tokens and embeds.shape[1] < context and (not tokens or tokens[-1] != eos_id):
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        logits[list(request.suppress)] = float("-inf")
        if len(tokens) < request.min_new_tokens:
            logits[eos_id] = float("-inf")
        if thinking is not None and thinking.start in tokens:
            logits[thinking.start] = float("-inf")
        tokens.append(int(logits.argmax()))
        embeds = torch.cat([embeds, embed(torch.tensor([[tokens[-1]]]))], dim=1)
        if thinking is not None and tokens[-1] == thinking.start:
            for _ in range(thinking.num_thoughts):
                states = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
                embeds = torch.cat([embeds, feed(states[:, -1:])], dim=1)
            embeds = torch.cat([embeds, embed(torch.tensor([[thinking.end]]))], dim=1)
    return tokens
