"""Hidden states of whole prompts, layer by layer, once their thoughts are known.

With its thoughts given, a prompt is an ordinary sequence: one pass holds the states that the latent loop came by one
after the other. State i of L is the one that is thought i: that of the position before it. The last state is the one
from which the first token of the text is chosen. Models without thoughts have the last state alone.

Legend: ``B`` cases, ``T`` positions, ``L`` latents, ``D`` hidden size, ``N`` layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coconut_ds.model.attention import AttentionSwitch
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.probing.cases import Case
from coconut_ds.reasoner import Reasoner

BATCH = 32
"""Prompts of one pass."""


@dataclass(frozen=True, eq=False)
class States:
    """States of one case."""

    fed: Tensor
    """[L, D] what was fed at the latents' positions."""
    layers: Tensor
    """[N + 1, L + 1, D] the states that are thoughts 1 … L, and the last one; layer 0 is what the first block gets, and
    the final norm is applied to each once. Fp32, on the CPU."""

    @property
    def thoughts(self) -> Tensor:
        """[L, D] the model's own thoughts, or what it has computed where a pause is fed."""
        return self.layers[-1, :-1]

    @property
    def last(self) -> Tensor:
        """[D] the state before the text."""
        return self.layers[-1, -1]


@torch.no_grad()
def layer_states(reasoner: Reasoner, cases: Sequence[Case], fed: Sequence[Tensor]) -> list[States]:
    """States of cases whose latents [L, D] are known (``Completion.thoughts``)."""
    loop, norm = reasoner.loop, final_norm(reasoner.loop)
    found: list[States | None] = [None] * len(cases)
    for batch in _batches(cases):
        embeds = _embedded(reasoner, [cases[i] for i in batch], [fed[i] for i in batch])
        output = loop.model.base_model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        for row, index in enumerate(batch):
            at = read_positions(cases[index])
            raw = torch.stack([layer[row, at] for layer in output.hidden_states[:-1]])
            layers = torch.cat([norm(raw), output.last_hidden_state[row, at].unsqueeze(0)])
            found[index] = States(fed[index].float().cpu(), layers.float().cpu())
    return [one for one in found if one is not None]


@torch.no_grad()
def attentions_of(reasoner: Reasoner, cases: Sequence[Case], fed: Sequence[Tensor]) -> list[Tensor]:
    """[N, L + 1, T] attention of the positions whose states ``states_of`` reads, summed over heads.

    Fused kernels keep no weights, so the pass takes transformers' plain attention.
    """
    found: dict[int, Tensor] = {}
    attention = AttentionSwitch(reasoner.loop.model, "eager")
    for batch in _batches(cases):
        embeds = _embedded(reasoner, [cases[i] for i in batch], [fed[i] for i in batch])
        with attention:
            output = reasoner.loop.model.base_model(inputs_embeds=embeds, use_cache=False, output_attentions=True)
        for row, index in enumerate(batch):
            at, length = read_positions(cases[index]), len(cases[index].prompt)
            weights = torch.stack([layer[row, :, at, :length].sum(dim=0) for layer in output.attentions])
            found[index] = weights.float().cpu()
    return [found[index] for index in range(len(cases))]


def read_positions(case: Case) -> list[int]:
    """The L + 1 positions whose states are read."""
    first = case.prompt.first_thought
    return [*range(first - 1, first - 1 + case.num_latents), len(case.prompt) - 1]


def final_norm(loop: LatentLoop) -> nn.Module:
    """The module that makes the last hidden states of those of the last block; identity where there is none.

    It is found by running one position: the module without children whose output is what the model returns, and whose
    input is something else.
    """
    ended: list[tuple[nn.Module, Tensor, Tensor]] = []

    def ends(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # Held on to, so that no later tensor takes the same memory.
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


def _batches(cases: Sequence[Case]) -> Iterator[list[int]]:
    """Indices of cases, those of like length together."""
    order = sorted(range(len(cases)), key=lambda index: len(cases[index].prompt))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def _embedded(reasoner: Reasoner, cases: Sequence[Case], fed: Sequence[Tensor]) -> Tensor:
    """[B, T, D] inputs of whole prompts, padded on the right, where causal attention sees no pads."""
    width = max(len(case.prompt) for case in cases)
    ids = torch.tensor([[*case.prompt.input_ids, *[0] * (width - len(case.prompt))] for case in cases])
    embeds: Tensor = reasoner.loop.embed(ids.to(reasoner.loop.device)).clone()
    for row, (case, vectors) in enumerate(zip(cases, fed, strict=True)):
        if case.num_latents:
            first = case.prompt.first_thought
            embeds[row, first : first + case.num_latents] = vectors.to(embeds)
    return embeds
