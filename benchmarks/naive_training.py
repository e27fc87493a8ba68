"""The baseline: training with continuous thoughts as the public implementation does it, in plain PyTorch.

Rows are padded on the left so that their first thoughts are in one column. After each thought, the embeddings of the
whole batch are rebuilt as nested Python lists of tensors. Every pass computes logits at all of its positions. The loss
is the mean over all labels of a micro batch. Before each pass the cache is cut back to the positions that are final.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from coconut_ds.methods.layout import IGNORE, Layout

LR = 1e-4
"""Learning rate of every update."""


def naive_batch(layouts: Sequence[Layout], pad_id: int, thought_id: int) -> dict[str, Tensor]:
    """The tensors [B, T] of a micro batch of B rows and T columns."""
    first = max(layout.first_thought for layout in layouts)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": [], "position_ids": []}
    lead = [first - layout.first_thought for layout in layouts]
    width = max(before + len(layout) for before, layout in zip(lead, layouts, strict=True))
    for before, layout in zip(lead, layouts, strict=True):
        after = width - before - len(layout)
        ids = list(layout.input_ids)
        ids[layout.first_thought : layout.first_thought + layout.num_thoughts] = [thought_id] * layout.num_thoughts
        rows["input_ids"].append([pad_id] * before + ids + [pad_id] * after)
        rows["labels"].append([IGNORE] * before + list(layout.labels) + [IGNORE] * after)
        rows["attention_mask"].append([0] * before + [1] * len(layout) + [0] * after)
        rows["position_ids"].append([0] * before + list(range(len(layout))) + [0] * after)
    return {name: torch.tensor(values) for name, values in rows.items()}


def naive_loss(model: PreTrainedModel, batch: dict[str, Tensor], thought_id: int) -> Tensor:
    """The loss of a micro batch, with one more pass than there are thoughts."""
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    thoughts = (ids == thought_id).nonzero()
    lists = [[place[1].item() for place in thoughts if place[0] == row] for row in range(len(ids))]
    count = max(map(len, lists))
    embeds = model.get_input_embeddings()(ids)
    start, end = 0, int(thoughts[:, 1].min()) if count else ids.shape[1]
    logits, cache = [], DynamicCache(config=model.config)

    def one_pass() -> Any:
        return model(
            inputs_embeds=embeds[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=_cut(cache, start) if start else cache,
            output_hidden_states=True,
        )

    for number in range(count):
        output = one_pass()
        logits.append(output.logits)
        hidden, cache = output.hidden_states[-1], output.past_key_values
        offset, start = start, end
        end = ids.shape[1] if number + 1 >= count else end + 1
        nested = [[embeds[row, column] for column in range(embeds.shape[1])] for row in range(embeds.shape[0])]
        for row, places in enumerate(lists):
            if number < len(places):
                nested[row][places[number]] = hidden[row, places[number] - 1 - offset]
        embeds = torch.stack([torch.stack(row) for row in nested])
    logits.append(one_pass().logits)
    shifted = torch.cat(logits, dim=1)[:, :-1]
    return F.cross_entropy(shifted.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE)


def _cut(cache: DynamicCache, length: int) -> DynamicCache:
    """A cache with the first ``length`` positions, still in the autograd graph."""
    return DynamicCache(
        ddp_cache_data=[(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers]
    )


def naive_update(
    model: torch.nn.Module, thought: int, pad: int, device: torch.device
) -> Callable[[Sequence[Layout]], float]:
    """A function that makes one update of plain PyTorch and AdamW on a micro batch, and returns its loss."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)

    def update(layouts: Sequence[Layout]) -> float:
        batch = naive_batch(layouts, pad, thought)
        loss = naive_loss(model, {name: value.to(device) for name, value in batch.items()}, thought)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return update
