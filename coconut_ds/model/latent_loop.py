"""The latent loop: one pass over the prefix, a one-position pass for each thought, one pass over the rest.

A *thought* is the last hidden state (after the final norm) at one position, fed back as the input embedding of the
next (arXiv 2412.06769, section 3). All passes share keys and values that stay in the autograd graph (``passes``), so
gradients flow through every thought, and nothing is encoded twice: the cost is that of one pass over T positions plus L
launches. Thoughts may also come all at once, in several passes over L positions (``method.thinking=jacobi``).

Legend: ``B`` rows, ``P``/``L``/``R`` columns of prefix, steps and rest (see ``collate``), ``T`` their sum, ``D`` hidden
size, ``V`` vocabulary, ``N`` targets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.checkpointing import checkpoint_layers
from coconut_ds.model.collate import LatentInputs, Targets
from coconut_ds.model.fused import fuse_activations
from coconut_ds.model.head import vocabulary_product
from coconut_ds.model.last_layer import LastLayer
from coconut_ds.model.loss import target_loss
from coconut_ds.model.passes import Passes, last_hidden_states, passes_of

Result = TypeVar("Result")


class LatentLoop(nn.Module):
    """A causal language model that can think.

    ``forward`` runs any function of this module, so that an engine which sees only ``forward`` (DeepSpeed's ZeRO hooks)
    sees training and generation alike: ``engine(latent_loss, inputs, targets)``.
    """

    def __init__(
        self, model: PreTrainedModel, activation_checkpointing: bool = False, defer_gradients: bool = True
    ) -> None:
        """Takes a model as it is.

        Args:
            model: a causal language model.
            activation_checkpointing: layers forget what they computed, and compute it again for its gradient.
            defer_gradients: on a CPU, sum the gradient of each weight over all passes in one product (``deferred``).
                Must be False under ZeRO-3, which takes weights away between passes.
        """
        super().__init__()
        self.model, self._defer_gradients = model, defer_gradients
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            # transformers' checkpointing drops the cache without an error: thoughts would not see the question.
            raise ModelError("gradient checkpointing of transformers drops the key/value cache; switch it off")
        fuse_activations(model)
        self.last_layer = LastLayer(model)
        if activation_checkpointing:
            checkpoint_layers(model)

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
    def vocabulary(self) -> int:
        """V: entries of a row of logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., D] of token ids [...]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def head(self, states: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in fp32."""
        return vocabulary_product(self.model.get_output_embeddings(), states).float()

    def states(
        self,
        embeds: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """One pass: hidden states [B, Q, D] after the final norm for embeddings [B, Q, D]; the cache grows by Q.

        ``read`` [K]: the only positions of B·Q whose states are right, each named once; None: all are.
        """
        with self.last_layer.only(read):
            return last_hidden_states(self.model, embeds, cache, attention_mask, position_ids)

    def encode(self, inputs: LatentInputs, all_states: bool = True) -> Tensor:
        """Hidden states [B, T, D] of a batch, thoughts included.

        ``all_states=False``: those before a thought or a target, and past the prefix; the others are rubbish.
        """
        width, num_thoughts = inputs.prefix_ids.shape[1], inputs.step_ids.shape[1]
        reading = partial(self.last_layer.only, None if all_states else inputs.prefix_read)
        # On other devices the sums of gradients cost less than the passes themselves.
        defers = self._defer_gradients and torch.is_grad_enabled() and self.device.type == "cpu"
        passes = passes_of(self.model, inputs, self.num_layers, reading, defers)
        parts = [passes.prefix(self.embed(inputs.prefix_ids))]
        if num_thoughts:
            rows = torch.arange(len(inputs.prefix_last), device=inputs.prefix_last.device)
            state = parts[0][rows, inputs.prefix_last].unsqueeze(1)
            parts += (self._one_by_one if inputs.iterations is None else self._at_once)(inputs, passes, state)
            parts.append(passes.later(self.embed(inputs.rest_ids), width + num_thoughts))
        return torch.cat(parts, dim=1)

    def _one_by_one(self, inputs: LatentInputs, passes: Passes, state: Tensor) -> list[Tensor]:
        """States of L columns, each [B, 1, D], after that of the prefix."""
        embedded, states = self.embed(inputs.step_ids), [state]
        for step in range(embedded.shape[1]):
            thought = inputs.is_thought[:, step, None, None]
            embeds = torch.where(thought, states[-1], embedded[:, step : step + 1])
            states.append(passes.later(embeds, inputs.prefix_ids.shape[1] + step))
        return states[1:]

    def _at_once(self, inputs: LatentInputs, passes: Passes, state: Tensor) -> list[Tensor]:
        """States [B, L, D] of all columns by Jacobi iteration (PCCoT, arXiv 2506.18582).

        Thoughts begin as the embedding of their marker. In each pass a thought is fed the state that stood at its left
        after the pass before, so pass t makes the first t thoughts those of ``_one_by_one``.
        """
        assert inputs.iterations is not None
        embedded, thought = self.embed(inputs.step_ids), inputs.is_thought.unsqueeze(-1)
        count = embedded.shape[1]
        fed = torch.cat([torch.where(thought[:, :1], state, embedded[:, :1]), embedded[:, 1:]], dim=1)
        for _ in range(min(inputs.iterations, count)):
            states = passes.later(fed, inputs.prefix_ids.shape[1], again=True)
            fed = torch.where(thought, torch.cat([state, states[:, :-1]], dim=1), embedded)
        return [states]


def latent_loss(loop: LatentLoop, inputs: LatentInputs, targets: Targets) -> Tensor:
    """Weighted sum of the cross entropies of all targets: a scalar in fp32. The head runs on N states only."""
    states = loop.encode(inputs, all_states=False)
    return target_loss(loop.head, loop.vocabulary, states.flatten(0, 1)[targets.index], targets)
