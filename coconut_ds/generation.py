"""Greedy generation in batches over the key/value cache: prompt, thoughts, text.

One pass over the prompts, one one-position pass a thought, one a token; rows that have ended run along until all have.
Under ZeRO-3 every rank must make the same passes, so the end is agreed on through ``all_done``.

Legend: ``B`` rows, ``W`` prompt columns, ``V`` vocabulary.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.layout import Layout
from coconut_ds.model.collate import LatentInputs, collate_prompts
from coconut_ds.model.latent_loop import LatentLoop


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode."""

    max_new_tokens: int
    eos_id: int
    suppress: tuple[int, ...] = ()
    """Tokens that are never chosen; the thought markers, which only a prompt may hold."""
    context_length: int | None = None
    """Positions that the model knows; generation ends there."""


class Generated(NamedTuple):
    """What the model wrote, and what it thought, for each row. A tuple, since ZeRO's hooks look for tensors in it."""

    tokens: list[list[int]]
    """New tokens, the end of sequence included where it was reached."""
    thoughts: Tensor
    """[B, thoughts, D] the hidden states that were fed back, on the CPU in fp32."""


def check_prompts(prompts: Sequence[Layout], context_length: int | None) -> None:
    """Refuses prompts that leave no room for a token.

    Raises:
        DataError: names the first one.
    """
    for index, prompt in enumerate(prompts):
        if context_length is not None and len(prompt) >= context_length:
            raise DataError(
                f"problem {index}: its prompt has {len(prompt)} positions, thoughts included; the model's context is "
                f"{context_length}; shorten the question or use fewer thoughts"
            )


@torch.no_grad()
def generate(
    loop: LatentLoop,
    prompts: Sequence[Layout],
    settings: GenerationSettings,
    all_done: Callable[[bool], bool] = bool,
) -> Generated:
    """Greedy continuations of ``prompts``, which have the same number of thoughts.

    Args:
        loop: the model; under an engine call ``engine(generate, prompts, settings, all_done)``.
        prompts: B layouts without targets.
        settings: see there.
        all_done: whether every rank has finished, given whether this one has.
    """
    check_prompts(prompts, settings.context_length)
    inputs = collate_prompts(prompts, settings.eos_id).to(loop.device)
    cache = loop.new_cache()
    states = loop.encode(inputs, cache)
    width = states.shape[1]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=loop.device)
    suppressed = torch.tensor(settings.suppress, dtype=torch.long, device=loop.device)
    limits = torch.full_like(lengths, settings.max_new_tokens)
    if settings.context_length is not None:
        limits = torch.minimum(limits, settings.context_length - lengths)

    rows = torch.arange(len(prompts), device=loop.device)
    last = states[rows, inputs.prefix_last] if inputs.step_ids.shape[1] == 0 else states[:, -1]
    thoughts = _thoughts(inputs, states)
    mask = inputs.attention_mask
    if mask is None and int(lengths.min()) < width:
        mask = (torch.arange(width, device=loop.device) < lengths[:, None]).long()
    done = torch.zeros(len(prompts), dtype=torch.bool, device=loop.device)
    tokens: list[Tensor] = []
    for count in itertools.count():
        logits = loop.head(last)
        logits[:, suppressed] = float("-inf")
        chosen = torch.where(done, settings.eos_id, logits.argmax(dim=-1))
        tokens.append(chosen)
        done |= (chosen == settings.eos_id) | (count + 1 >= limits)
        if all_done(bool(done.all())):
            break
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        # A row past its limit runs along for the others; its positions stay within the context.
        position = lengths + torch.clamp(limits - 1, max=count)
        last = loop.states(loop.embed(chosen.unsqueeze(1)), cache, mask, position.unsqueeze(1))[:, 0]
    return Generated(_until_end(tokens, limits.tolist(), settings.eos_id), thoughts)


def _thoughts(inputs: LatentInputs, states: Tensor) -> Tensor:
    """The states that were fed back: the last of the prefix and those of all one-position passes but the last."""
    count = inputs.step_ids.shape[1]
    if count == 0:
        return torch.zeros(len(states), 0, states.shape[-1])
    width = inputs.prefix_ids.shape[1]
    rows = torch.arange(len(states), device=states.device)
    first = states[rows, inputs.prefix_last].unsqueeze(1)
    return torch.cat([first, states[:, width : width + count - 1]], dim=1).float().cpu()


def _until_end(tokens: list[Tensor], limits: list[int], eos_id: int) -> list[list[int]]:
    rows: list[list[int]] = torch.stack(tokens, dim=1).tolist()
    rows = [row[:limit] for row, limit in zip(rows, limits, strict=True)]
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in rows]
