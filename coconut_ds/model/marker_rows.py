"""Trains the markers' rows of the embedding while the rest of it is frozen.

A marker's row is its row in the frozen matrix plus a trained difference, which starts at zero. The input embedding and
the head are each wrapped in a layer that adds the difference; the wrapped layer is named as ``peft`` names the layers
that it wraps. If embedding and head are tied, they share the difference. Gradients and optimizer states exist only for
the marker rows.

Shapes:
    M  number of markers
    D  hidden size
    V  vocabulary size
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from coconut_ds.distributed.zero import whole_shape
from coconut_ds.model.support import embedding_weight


class _MarkerRows(nn.Module):
    """Base of both wrappers: the frozen layer, the markers and their differences [M, D]."""

    ids: Tensor
    """[M] token ids of the markers."""

    def __init__(self, base_layer: nn.Module, ids: Tensor, difference: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.difference = difference
        # Not in the state dict, since the tokenizer determines it.
        self.register_buffer("ids", ids, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The frozen matrix [V, D]."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        return weight


class MarkerEmbedding(_MarkerRows):
    """An input embedding of which only the marker rows are trained."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., D] of token ids [...]."""
        embedded: Tensor = self.base_layer(ids)
        is_marker = ids.unsqueeze(-1) == self.ids
        return embedded + is_marker.to(embedded.dtype) @ self.difference


class MarkerHead(_MarkerRows):
    """A language model head of which only the marker rows are trained."""

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]."""
        logits: Tensor = self.base_layer(states)
        return logits.index_add(-1, self.ids, states @ self.difference.t())


def train_marker_rows(model: PreTrainedModel, ids: tuple[int, ...]) -> None:
    """Wraps the model's embedding and head, in place. ``ids``: token ids of the markers."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    # On the device of the weights: DeepSpeed does not move the buffers of a model that was built in shards.
    place = torch.tensor(ids, device=embedding_weight(embedding).device)

    def difference() -> nn.Parameter:
        weight = embedding.weight
        assert isinstance(weight, Tensor)
        return nn.Parameter(weight.new_zeros(len(ids), whole_shape(weight)[1]))

    rows = difference()
    model.set_input_embeddings(MarkerEmbedding(embedding, place, rows))
    model.set_output_embeddings(MarkerHead(head, place.clone(), rows if tied else difference()))


def add_differences(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Adds the differences in a state dict to the marker rows, and removes them from it, in place."""
    for name, module in model.named_modules():
        difference = state.pop(f"{name}.difference", None) if isinstance(module, _MarkerRows) else None
        if difference is not None:
            # A tied head has no entries of its own: the state dict holds shared parameters under the embedding's names.
            state[f"{name}.base_layer.weight"][module.ids.cpu()] += difference
