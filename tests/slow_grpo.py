"""GRPO, slow and obvious: loss and measures of given completions, one row and one token at a time, differentiable."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from slow_thoughts import IGNORE, Feed, Row, logits_of, states_of, think
from torch import Tensor
from transformers import PreTrainedModel

Think = Callable[[PreTrainedModel, Row, Feed], Tensor]
"""Returns the input embeddings [T, D] of a row, with its thoughts filled in."""


class Sampled(NamedTuple):
    """One completion."""

    row: Row
    """Prompt and completion. Labels: the tokens that were sampled."""
    advantage: float
    weight: float
    """Weight of each of its tokens in the loss."""
    factor: Tensor
    """[L, D] what the k-th vector that is fed back is multiplied with."""
    term: Tensor
    """[L, D] what is then added to it."""
    old: Sequence[float]
    """Log probability of each token under the model that sampled; empty: that of the current model."""
    reference: Sequence[float]
    """The same under the reference; empty: no KL divergence."""
    codes: Tensor | None = None
    """[N, r] of the noise on the values of each layer; None: there is none."""


@contextmanager
def noisy_values(model: PreTrainedModel, sampled: Sampled, scale: float) -> Iterator[None]:
    """Within it, layer i computes the values of prompt and thoughts with W + scale · U diag(s ∘ codes[i]) Vᵀ, where W =
    U diag(s) Vᵀ are its own weights, and all other values with W."""
    with ExitStack() as stack:
        layers = model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
        for layer, code in zip(
            layers, () if sampled.codes is None else sampled.codes, strict=sampled.codes is not None
        ):
            is_gpt2 = model.config.model_type == "gpt2"
            module = layer.attn.c_attn if is_gpt2 else layer.self_attn.v_proj
            # GPT-2 computes queries, keys and values together, and stores the weights transposed.
            weight = module.weight[:, 2 * model.config.n_embd :] if is_gpt2 else module.weight.T
            left, singular, right = torch.linalg.svd(weight.detach(), full_matrices=False)
            other = weight + scale * left @ torch.diag(singular * code) @ right
            end = sampled.row.first_thought + sampled.row.num_thoughts

            def replace(module, arguments, output, other=other, end=end):
                size = other.shape[1]
                bias = 0 if module.bias is None else module.bias[-size:]
                early = arguments[0][:, :end] @ other + bias
                values = torch.cat([early, output[:, end:, -size:]], dim=1)
                return torch.cat([output[..., :-size], values], dim=-1)

            stack.callback(module.register_forward_hook(replace).remove)
        yield


@dataclass(frozen=True)
class GrpoOptions:
    temperature: float
    banned: Sequence[int]
    epsilon: float
    epsilon_high: float
    beta: float
    svp_scale: float = 0.0


def one_after_another(model: PreTrainedModel, row: Row, feed: Feed) -> Tensor:
    return think(model, row, feed)[0]


def slow_log_probabilities(
    model: PreTrainedModel, sampled: Sampled, feed: Feed, options: GrpoOptions, fill: Think = one_after_another
) -> list[Tensor]:
    """For each token that was sampled: the log probabilities [V] of the distribution that it was sampled from."""
    row, count = sampled.row, 0

    def noisy(vectors: Tensor) -> Tensor:
        nonlocal count
        place, count = count, count + 1
        if place >= len(sampled.factor):
            # What the last thought would feed next, which nothing reads.
            return feed(vectors)
        return feed(vectors) * sampled.factor[place] + sampled.term[place]

    with noisy_values(model, sampled, options.svp_scale):
        states = states_of(model, fill(model, row, noisy))
    found = []
    for place, label in enumerate(row.labels):
        if label != IGNORE:
            logits = logits_of(model, states[place - 1]) / options.temperature
            kept = [token for token in range(len(logits)) if token not in options.banned]
            every = torch.full_like(logits, -math.inf)
            every[kept] = logits[kept].log_softmax(dim=-1)
            found.append(every)
    return found


def slow_grpo(
    model: PreTrainedModel, completions: Sequence[Sampled], feed: Feed, options: GrpoOptions
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The parts of the loss (``policy`` and ``kl``), and the means over all tokens that are logged."""
    policy, divergence = torch.zeros(()), torch.zeros(())
    kls, clips, entropies = [], [], []
    for sampled in completions:
        labels = [label for label in sampled.row.labels if label != IGNORE]
        for number, every in enumerate(slow_log_probabilities(model, sampled, feed, options)):
            new = every[labels[number]]
            old = sampled.old[number] if sampled.old else new.detach()
            ratio, gain = torch.exp(new - old), sampled.advantage
            if gain > 0:
                clips.append(float(ratio.detach()) > 1 + options.epsilon_high)
                surrogate = gain * torch.clamp(ratio, max=1 + options.epsilon_high)
            else:
                clips.append(float(ratio.detach()) < 1 - options.epsilon and gain < 0)
                surrogate = gain * torch.clamp(ratio, min=1 - options.epsilon)
            policy = policy - sampled.weight * surrogate
            if sampled.reference:
                difference = sampled.reference[number] - new
                kl = torch.exp(difference) - difference - 1
                divergence = divergence + options.beta * sampled.weight * kl
                kls.append(kl.item())
            shown = every[torch.isfinite(every)]
            entropies.append(float(-(shown.exp() * shown).sum().detach()))
    count = len(entropies)
    measures = {"kl": sum(kls) / count, "clip_fraction": sum(clips) / count, "entropy": sum(entropies) / count}
    return {"policy": policy, "kl": divergence}, measures
