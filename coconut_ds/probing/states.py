"""Computes the hidden states of complete prompts at every layer, once the thoughts are known.

When the inputs at the latents are given, a prompt is an ordinary sequence, so one forward pass computes the states that
the latent loop computed one after the other. Of the L + 1 states of a case, state i (for i up to L) is the one that is
fed back as thought i, through the feed if there is one; it is the state of the position before thought i. The last
state is the one from which the first token of the text is chosen. Models without thoughts have only this last state.

Legend: ``B`` cases, ``T`` positions, ``L`` latents, ``D`` hidden size, ``N`` layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from coconut_ds.model.attention import AttentionSwitch
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.cases import Case
from coconut_ds.reasoner import Reasoner

BATCH = 32
"""Number of prompts in one forward pass."""


@dataclass(frozen=True, eq=False)
class States:
    """The hidden states of one case; fp32, on the CPU."""

    fed: Tensor
    """[L, D] the vectors that were fed at the positions of the latents."""
    layers: Tensor
    """[N + 1, L + 1, D] the states of thoughts 1 … L and the last state. Layer 0 is the input of the first block. The
    final norm is applied exactly once to every state."""
    inputs: Tensor
    """[L, D] ``thoughts`` as input embeddings, which can be compared with those of tokens: what the feed makes of them;
    without a feed the thoughts themselves."""

    @property
    def thoughts(self) -> Tensor:
        """[L, D] the model's own thoughts; with pauses, the states that it computes at the same positions."""
        return self.layers[-1, :-1]

    @property
    def last(self) -> Tensor:
        """[D] the state from which the first token of the text is chosen."""
        return self.layers[-1, -1]


@in_parts
@torch.no_grad()
def layer_states(reasoner: Reasoner, cases: Sequence[Case], fed: Sequence[Tensor]) -> Parts[list[States]]:
    """Computes the states of cases; ``fed`` contains the inputs [L, D] at each case's latents (``Completion.fed``)."""
    loop, norm = reasoner.loop, final_norm(reasoner.loop)
    found: list[States | None] = [None] * len(cases)
    for batch in _batches(cases, reasoner.pass_positions):
        chosen = [cases[i] for i in batch]
        embeds = embedded(reasoner, chosen, [fed[i] for i in batch])
        states = yield from _states_at(reasoner, embeds, [read_positions(case) for case in chosen])
        for index, (raw, last) in zip(batch, states, strict=True):
            layers, inputs = torch.cat([norm(raw), last.unsqueeze(0)]), loop.fed(last[:-1])
            found[index] = States(fed[index].float().cpu(), layers.float().cpu(), inputs.float().cpu())
    return [one for one in found if one is not None]


def _states_at(
    reasoner: Reasoner, embeds: Tensor, positions: Sequence[Sequence[int]]
) -> Parts[list[tuple[Tensor, Tensor]]]:
    """The states of each row of ``embeds`` [B, T, D] at its positions [P]: before the final norm at layers 0 to N - 1,
    [N, P, D], and the last ones, [P, D].

    A sequence that is longer than a pass may be is read in several pieces over a cache.
    """
    base, length = reasoner.loop.model.base_model, embeds.shape[1]
    piece = length if reasoner.pass_positions is None else max(1, reasoner.pass_positions // len(embeds))
    cache = DynamicCache(config=reasoner.backbone.model.config) if piece < length else None
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in positions]
    for start in range(0, length, piece):
        part = embeds[:, start : start + piece]
        output = base(inputs_embeds=part, past_key_values=cache, use_cache=cache is not None, output_hidden_states=True)
        for row, own in enumerate(positions):
            at = [place - start for place in own if start <= place < start + piece]
            raw = torch.stack([layer[row, at] for layer in output.hidden_states[:-1]])
            found[row].append((raw, output.last_hidden_state[row, at]))
        yield None
    return [(torch.cat([raw for raw, _ in own], dim=1), torch.cat([last for _, last in own])) for own in found]


def attentions_of(reasoner: Reasoner, cases: Sequence[Case], fed: Sequence[Tensor]) -> list[Tensor]:
    """Attention weights, [N, L + 1, T] for each case, of the positions that ``layer_states`` reads; summed over heads.

    See ``head_attentions`` for the arguments.
    """
    at = [read_positions(case) for case in cases]
    return head_attentions(reasoner, cases, fed, at, lambda weights: weights.sum(dim=1))


@torch.no_grad()
def head_attentions(
    reasoner: Reasoner,
    cases: Sequence[Case],
    fed: Sequence[Tensor],
    positions: Sequence[Sequence[int]],
    of: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> list[Tensor]:
    """Attention weights, [N, H, P, T] for each case, of each case's P positions and H heads; fp32, on the CPU.

    Fused attention kernels do not return weights, so the forward pass uses the eager attention of transformers.

    Args:
        reasoner: the model.
        cases: the cases.
        fed: the inputs [L, D] at each case's latents (``Completion.fed``).
        positions: the positions of each case.
        of: what to keep of a case's weights; the default is all of them.
    """
    found: dict[int, Tensor] = {}
    attention = AttentionSwitch(reasoner.loop.model, "eager")
    for batch in _batches(cases, None):
        embeds = embedded(reasoner, [cases[i] for i in batch], [fed[i] for i in batch])
        with attention:
            output = reasoner.loop.model.base_model(inputs_embeds=embeds, use_cache=False, output_attentions=True)
        for row, index in enumerate(batch):
            at, length = list(positions[index]), len(cases[index].prompt)
            found[index] = of(torch.stack([layer[row][:, at, :length] for layer in output.attentions]).float()).cpu()
    return [found[index] for index in range(len(cases))]


def read_positions(case: Case) -> list[int]:
    """The L + 1 positions of the prompt whose states are read."""
    first = case.prompt.first_thought
    return [*range(first - 1, first - 1 + case.num_latents), len(case.prompt) - 1]


def final_norm(loop: LatentLoop) -> nn.Module:
    """The final norm: the module between the last block and the returned hidden states; the identity if there is none.

    It is found by running the model on one position: it is the module without children whose output is the tensor that
    the model returns, and whose input is a different tensor.
    """
    ended: list[tuple[nn.Module, Tensor, Tensor]] = []

    def ends(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # The tensors are kept, so that no later tensor can reuse their memory and have the same data pointer.
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            ended.append((module, inputs[0], output))

    base = loop.model.base_model
    hooks = [module.register_forward_hook(ends) for module in base.modules() if not list(module.children())]
    try:
        with torch.no_grad():
            embeds = loop.embed(torch.zeros(1, 1, dtype=torch.long, device=loop.device))
            last = base(inputs_embeds=embeds, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    for module, given, made in ended:
        if made.data_ptr() == last.data_ptr() and given.data_ptr() != last.data_ptr():
            return module
    return nn.Identity()


def _batches(cases: Sequence[Case], most: int | None) -> Iterator[list[int]]:
    """Yields batches of indices of cases with similar lengths: of at most ``most`` positions, if it is given."""
    order = sorted(range(len(cases)), key=lambda index: len(cases[index].prompt))
    while order:
        count = BATCH
        if most is not None:
            fitting = (n for n in range(1, BATCH) if (n + 1) * len(cases[order[min(n, len(order) - 1)]].prompt) > most)
            count = next(fitting, BATCH)
        yield order[:count]
        order = order[count:]


def embedded(reasoner: Reasoner, cases: Sequence[Case], fed: Sequence[Tensor]) -> Tensor:
    """[B, T, D] input embeddings of complete prompts, padded on the right, where causal attention ignores padding."""
    width = max(len(case.prompt) for case in cases)
    ids = torch.tensor([[*case.prompt.input_ids, *[0] * (width - len(case.prompt))] for case in cases])
    embeds: Tensor = reasoner.loop.embed(ids.to(reasoner.loop.device)).clone()
    for row, (case, vectors) in enumerate(zip(cases, fed, strict=True)):
        if case.num_latents:
            first = case.prompt.first_thought
            embeds[row, first : first + case.num_latents] = vectors.to(embeds)
    return embeds
