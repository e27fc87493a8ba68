"""The latent loop: one pass over the prefix, a one-position pass for each thought, one pass over the rest.

A *thought* is the last hidden state (after the final norm) at one position, fed back as the input embedding of the
next (arXiv 2412.06769, section 3). All passes share one key/value cache that stays in the autograd graph, so gradients
flow through every thought, and nothing is encoded twice: the cost is that of one pass over T positions plus L launches.

Legend: ``B`` rows, ``P``/``L``/``R`` columns of prefix, steps and rest (see ``collate``), ``T`` their sum, ``D`` hidden
size, ``V`` vocabulary, ``N`` targets.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.collate import LatentInputs, Targets
from coconut_ds.model.fused import fuse_activations

Result = TypeVar("Result")


class LatentLoop(nn.Module):
    """A causal language model that can think.

    ``forward`` runs any function of this module, so that an engine which sees only ``forward`` (DeepSpeed's ZeRO hooks)
    sees training and generation alike: ``engine(latent_loss, inputs, targets)``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            # transformers' checkpointing drops the cache without an error: thoughts would not see the question.
            raise ModelError("gradient checkpointing of transformers drops the key/value cache; switch it off")
        fuse_activations(model)

    def forward(self, task: Callable[..., Result], *arguments: Any) -> Result:
        """``task(self, *arguments)``."""
        return task(self, *arguments)

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self.model.device

    @property
    def width(self) -> int:
        """D: entries of an input embedding."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def new_cache(self) -> DynamicCache:
        """An empty key/value cache."""
        return DynamicCache(config=self.model.config)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., D] of token ids [...]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def head(self, states: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in fp32."""
        logits: Tensor = self.model.get_output_embeddings()(states)
        return logits.float()

    def states(
        self,
        embeds: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """One pass: hidden states [B, Q, D] after the final norm for embeddings [B, Q, D]; the cache grows by Q."""
        output = self.model.base_model(
            inputs_embeds=embeds,
            past_key_values=cache,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def encode(self, inputs: LatentInputs, cache: DynamicCache) -> Tensor:
        """All hidden states [B, T, D] of a batch, thoughts included."""
        width, num_thoughts = inputs.prefix_ids.shape[1], inputs.step_ids.shape[1]
        # The cache is there before the first pass: with position ids and no cache the library would take rows for
        # packed sequences. No mask: pads stand on the right, and causal attention does not look there.
        parts = [self.states(self.embed(inputs.prefix_ids), cache)]
        if num_thoughts:
            rows = torch.arange(len(inputs.prefix_last), device=inputs.prefix_last.device)
            state = parts[0][rows, inputs.prefix_last].unsqueeze(1)
            embedded = self.embed(inputs.step_ids)
            for step in range(num_thoughts):
                thought = inputs.is_thought[:, step, None, None]
                state = self.states(
                    torch.where(thought, state, embedded[:, step : step + 1]),
                    cache,
                    *self._columns(inputs, width + step, 1),
                )
                parts.append(state)
            rest = self.embed(inputs.rest_ids)
            parts.append(self.states(rest, cache, *self._columns(inputs, width + num_thoughts, rest.shape[1])))
        return torch.cat(parts, dim=1)

    def _columns(self, inputs: LatentInputs, start: int, count: int) -> tuple[Tensor | None, Tensor]:
        """Mask [B, start+count] and positions [B, count] of ``count`` columns from ``start`` on."""
        place = torch.arange(start, start + count, device=inputs.position_offset.device)
        mask = inputs.attention_mask
        positions = torch.minimum(place - inputs.position_offset[:, None], inputs.last_position[:, None])
        return None if mask is None else mask[:, : start + count], positions


def latent_loss(loop: LatentLoop, inputs: LatentInputs, targets: Targets) -> Tensor:
    """Weighted sum of the cross entropies of all targets: a scalar in fp32. The head runs on N states only."""
    states = loop.encode(inputs, loop.new_cache())
    logits = loop.head(states.flatten(0, 1)[targets.index])
    losses = F.cross_entropy(logits, targets.ids, reduction="none")
    return (losses * targets.weights).sum()
