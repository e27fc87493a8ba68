"""Rows of the embedding that learn while the rest of it is frozen.

A marker's row is what the frozen matrix has plus a difference that is trained, which begins at zero. Both ends of the
model get a layer around their own, named as ``peft`` names such layers; where they share a matrix they share the
difference. Cost: the marker rows alone, in each pass, in gradients and in the optimizer.

Legend: ``M`` markers, ``D`` hidden size, ``V`` vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from coconut_ds.distributed.zero import whole_shape


class _Around(nn.Module):
    """What both layers share."""

    ids: Tensor
    """[M] token ids."""

    def __init__(self, base_layer: nn.Module, ids: Tensor, difference: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.difference = difference
        # Not part of a saved state: it follows from the tokenizer.
        self.register_buffer("ids", ids, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The frozen matrix [V, D]."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        return weight


class MarkerEmbedding(_Around):
    """An input embedding whose marker rows learn."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., D] of token ids [...]."""
        embedded: Tensor = self.base_layer(ids)
        is_marker = ids.unsqueeze(-1) == self.ids
        return embedded + is_marker.to(embedded.dtype) @ self.difference


class MarkerHead(_Around):
    """A head whose marker rows learn."""

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]."""
        logits: Tensor = self.base_layer(states)
        return logits.index_add(-1, self.ids, states @ self.difference.t())


def train_marker_rows(model: PreTrainedModel, ids: tuple[int, ...]) -> None:
    """Puts the layers in the place of the model's own, in place."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    place = torch.tensor(ids)

    def difference() -> nn.Parameter:
        weight = embedding.weight
        assert isinstance(weight, Tensor)
        return nn.Parameter(weight.new_zeros(len(ids), whole_shape(weight)[1]))

    rows = difference()
    model.set_input_embeddings(MarkerEmbedding(embedding, place, rows))
    model.set_output_embeddings(MarkerHead(head, place.clone(), rows if tied else difference()))


def add_differences(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Adds the differences of a whole state to the rows that they belong to, and removes them, in place."""
    for name, module in model.named_modules():
        difference = state.pop(f"{name}.difference", None) if isinstance(module, _Around) else None
        if difference is not None:
            # Rows of a tied head are those of the embedding, which comes first.
            state[f"{name}.base_layer.weight"][module.ids.cpu()] += difference
