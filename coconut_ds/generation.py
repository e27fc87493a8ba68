"""Greedy generation in batches over the key/value cache: prompt, thoughts, text.

One pass over the prompts, one one-position pass a thought, one a token; rows that have ended run along until all have.
Thoughts stand in the prompt, or come where the model asks for them (``Thinking``): a thought and a token are the same
one-position pass with another input row, so a batch mixes both. Under ZeRO-3 every rank must make the same passes, so
the end is agreed on through ``all_done``.

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

NOTHING = -1
"""Stands where a row wrote no token: it was thinking, or had ended."""


@dataclass(frozen=True)
class Thinking:
    """How a model thinks that begins by itself: once it writes ``start``, thoughts follow, then ``end`` is given."""

    start: int
    end: int
    num_thoughts: int


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode."""

    max_new_tokens: int
    eos_id: int
    suppress: tuple[int, ...] = ()
    """Tokens that are never chosen; the thought markers, which only a prompt may hold."""
    context_length: int | None = None
    """Positions that the model knows; generation ends there."""
    thinking: Thinking | None = None
    """None: all thoughts stand in the prompt."""


class Generated(NamedTuple):
    """What the model wrote, and what it thought, for each row. A tuple, since ZeRO's hooks look for tensors in it."""

    tokens: list[list[int]]
    """New tokens, the end of sequence included where it was reached."""
    thoughts: Tensor
    """[B, thoughts, D] the hidden states that were fed back, on the CPU in fp32; zeros where a row never thought."""


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
    rows = torch.arange(len(prompts), device=loop.device)
    last = states[rows, inputs.prefix_last] if inputs.step_ids.shape[1] == 0 else states[:, -1]
    mask = inputs.attention_mask
    if mask is None and int(lengths.min()) < width:
        mask = (torch.arange(width, device=loop.device) < lengths[:, None]).long()
    writer = _Writer(settings, len(prompts), loop)
    thoughts = _thoughts(inputs, states)
    for count in itertools.count():
        place = lengths + count
        if settings.context_length is not None:
            # A row at its end runs along for the others; its positions stay within the context.
            place = place.clamp(max=settings.context_length - 1)
        embeds = writer.write(last)
        writer.done |= place + 1 == settings.context_length
        if all_done(bool(writer.done.all())):
            break
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        last = loop.states(embeds.unsqueeze(1), cache, mask, place.unsqueeze(1))[:, 0]
    return Generated(writer.tokens(), thoughts if settings.thinking is None else writer.thoughts)


class _Writer:
    """Turns each row's last state into its next input: the token it chooses, a thought, or the marker that follows."""

    def __init__(self, settings: GenerationSettings, size: int, loop: LatentLoop) -> None:
        self._settings, self._loop, self._thinking = settings, loop, settings.thinking
        self.done = torch.zeros(size, dtype=torch.bool, device=loop.device)
        self.thoughts = torch.zeros(size, self._thinking.num_thoughts if self._thinking else 0, loop.width)
        self._columns: list[Tensor] = []
        self._suppressed = torch.tensor(settings.suppress, dtype=torch.long, device=loop.device)
        self._num_tokens = torch.zeros(size, dtype=torch.long, device=loop.device)
        # Passes that a row still owes to its thoughts, the marker after them included; -1 where it never began.
        self._owed = torch.full_like(self._num_tokens, -1)

    def write(self, last: Tensor) -> Tensor:
        """Input embeddings [B, D] that follow states [B, D]."""
        logits = self._loop.head(last)
        logits[:, self._suppressed] = float("-inf")
        if self._thinking is not None:
            # Nobody thinks twice.
            logits[self._owed >= 0, self._thinking.start] = float("-inf")
        chosen = torch.where(self.done, self._settings.eos_id, logits.argmax(dim=-1))
        writes = self._owed <= 0
        self._columns.append(torch.where(writes & ~self.done, chosen, NOTHING))
        self._num_tokens += writes
        self.done |= writes & ((chosen == self._settings.eos_id) | (self._num_tokens >= self._settings.max_new_tokens))
        if self._thinking is None:
            return self._loop.embed(chosen)
        return self._think(self._thinking, last, chosen)

    def tokens(self) -> list[list[int]]:
        """New tokens of each row."""
        rows: list[list[int]] = torch.stack(self._columns, dim=1).tolist()
        return [[token for token in row if token != NOTHING] for row in rows]

    def _think(self, thinking: Thinking, last: Tensor, chosen: Tensor) -> Tensor:
        owed = self._owed
        thinks = (owed > 1) & ~self.done
        for row in thinks.nonzero().flatten().tolist():
            self.thoughts[row, thinking.num_thoughts + 1 - int(owed[row])] = last[row].float().cpu()
        embeds = self._loop.embed(torch.where(owed == 1, thinking.end, chosen))
        embeds = torch.where(thinks[:, None], last, embeds)
        begins = (owed < 0) & (chosen == thinking.start)
        self._owed = torch.where(begins, thinking.num_thoughts + 1, torch.where(owed > 0, owed - 1, owed))
        return embeds


def _thoughts(inputs: LatentInputs, states: Tensor) -> Tensor:
    """The states that were fed back: the last of the prefix and those of all one-position passes but the last."""
    count = inputs.step_ids.shape[1]
    if count == 0:
        return torch.zeros(len(states), 0, states.shape[-1])
    width = inputs.prefix_ids.shape[1]
    rows = torch.arange(len(states), device=states.device)
    first = states[rows, inputs.prefix_last].unsqueeze(1)
    return torch.cat([first, states[:, width : width + count - 1]], dim=1).float().cpu()
