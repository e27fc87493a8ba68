"""The auxiliary decoder of SIM-CoT: a causal language model that reads thoughts and writes the step they stand for.

It exists in training only. Its input embeddings come from outside: thoughts, and tokens as the main model embeds them.
So it has no embedding of its own, unless that is also its head.

Shapes:
    G  groups of thoughts
    c  thoughts of a group
    W  columns of tokens
    D  hidden size of the main model
    E  hidden size of the decoder
    V  vocabulary size
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.distributed.zero import whole
from coconut_ds.errors import ModelError
from coconut_ds.model.checkpointing import checkpoint_layers
from coconut_ds.model.fused import fuse_activations
from coconut_ds.model.head import vocabulary_product
from coconut_ds.model.lora import FROZEN
from coconut_ds.model.passes import whole_states
from coconut_ds.model.support import CONSTRUCTION, state_size
from coconut_ds.model.trial import hides_cache
from coconut_ds.settings import SimCotConfig


class StepDecoder(nn.Module):
    """Wraps a causal language model, which it changes in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        input_size: int,
        first_position: int = 0,
        activation_checkpointing: bool = False,
        plain: bool = False,
    ) -> None:
        """
        Args:
            model: the decoder's own model.
            input_size: D. If it is not E, all input embeddings go through a learned linear map first.
            first_position: position id of the first thought of a group.
            activation_checkpointing: whether layers drop their activations and recompute them in the backward pass.
            plain: see ``passes.whole_states``.
        """
        super().__init__()
        self.model, self._first_position, self._plain = model, first_position, plain
        config = model.config.get_text_config()
        self._num_layers = int(config.num_hidden_layers)
        self.vocabulary = int(config.vocab_size)
        self.projection = None
        if config.hidden_size != input_size:
            self.projection = nn.Linear(input_size, config.hidden_size)
        fuse_activations(model)
        if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
            # Nothing reads it, and ZeRO 1 and 2 wait for a gradient of every parameter.
            model.set_input_embeddings(nn.Identity())
        if activation_checkpointing:
            checkpoint_layers(model)

    def forward(self, thoughts: Tensor, tokens: Tensor) -> Tensor:
        """The hidden states [G, c + W, E] of groups of thoughts [G, c, D], each followed by tokens [G, W, D]."""
        embeds = torch.cat([thoughts, tokens], dim=1)
        if self.projection is not None:
            embeds = self.projection(embeds)
        return whole_states(self.model, embeds, self._num_layers, self._first_position, self._plain)

    def head(self, states: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., E], in fp32."""
        return vocabulary_product(self.model.get_output_embeddings(), states).float()


def build_step_decoder(
    model: PreTrainedModel, settings: SimCotConfig, first_position: int, activation_checkpointing: bool
) -> StepDecoder:
    """A new decoder of the main model's architecture, in fp32 on the CPU; all of its weights learn.

    Its weights are those of the main model's first layers, norm and head, or random ones from torch's global generator.

    Args:
        model: the main model, with or without adapters. Under ZeRO-3 all ranks must call this together.
        settings: of the decoder.
        first_position: see ``StepDecoder``.
        activation_checkpointing: see ``StepDecoder``.

    Raises:
        ModelError: the decoder would be deeper than the model, or cannot have the width that is asked for.
    """
    hidden = int(model.config.get_text_config().hidden_size)
    if state_size(model) != hidden:
        raise ModelError(
            f"objective=sim_cot: the model projects its embeddings from {state_size(model)} to {hidden} numbers, and a "
            "decoder of this architecture cannot read its thoughts; use another model, or objective=likelihood"
        )
    config = _architecture(model, settings)
    family: Any = type(model)
    try:
        with CONSTRUCTION:
            made = family._from_config(
                config, dtype=torch.float32, attn_implementation=model.config._attn_implementation
            )
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ModelError(
            f"objective.sim_cot.decoder_width={settings.decoder_width}: no {family.__name__} can have this width "
            f"({error}); set another one, or objective.sim_cot.decoder_width=null"
        ) from error
    decoder = StepDecoder(made, state_size(model), first_position, activation_checkpointing, hides_cache(model))
    if settings.decoder_init == "model":
        _copy_weights(model, made)
    return decoder


def _architecture(model: PreTrainedModel, settings: SimCotConfig) -> PreTrainedConfig:
    """The Hugging Face configuration of the decoder."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    depth, layers = int(text.num_hidden_layers), settings.decoder_layers
    if layers is not None and layers > depth:
        raise ModelError(
            f"objective.sim_cot.decoder_layers={layers}: the model has {depth} layers, and the decoder cannot be "
            f"deeper than the model; set it to at most {depth}, or to null for as many as the model"
        )
    if layers is not None:
        for name, value in list(vars(text).items()):
            # Some families list what kind each layer is.
            if "layer" in name and isinstance(value, (list, tuple)) and len(value) == depth:
                setattr(text, name, value[:layers])
        text.num_hidden_layers = layers
    width, size = settings.decoder_width, int(text.hidden_size)
    if width is not None and width != size:
        inner = "n_inner" if hasattr(text, "n_inner") else "intermediate_size"
        if getattr(text, inner, None) is not None:
            setattr(text, inner, max(1, getattr(text, inner) * width // size))
        text.hidden_size = width
    return config


@torch.no_grad()
def _copy_weights(model: PreTrainedModel, made: PreTrainedModel) -> None:
    """Copies the weights that ``made`` has from ``model``, whose adapters do not change anything yet."""
    weights = {name.replace(FROZEN, ""): parameter for name, parameter in model.named_parameters()}
    for name, parameter in made.named_parameters():
        with whole([weights[name]]):
            parameter.copy_(weights[name])
