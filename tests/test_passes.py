"""The passes of a batch over shared keys and values equal passes over each whole sequence, without cache or padding."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_loop import slow_embeddings
from tiny_models import VOCABULARY, make_model
from torch import Tensor
from transformers import PreTrainedModel

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.collate import LatentInputs, collate
from coconut_ds.model.passes import LatentPasses, Passes, PlainPasses, passes_of, positions_of

FAMILIES = ["gpt2", "llama", "qwen3"]
KINDS = {"sdpa": LatentPasses, "eager": PlainPasses}
THOUGHT = VOCABULARY - 1
LAYOUTS = [
    Layout([5, 6, THOUGHT, THOUGHT, 7, 8, 9], [IGNORE] * 5 + [8, 9], 2, 2),
    Layout([*range(4, 13), THOUGHT, THOUGHT, THOUGHT, 2, 8], [IGNORE] * 13 + [8], 9, 3),
    Layout([5, 4, 5, 8], [IGNORE, 4, 5, 8], 4, 0),
]
"""Prefixes of 2, 9 and 4 columns; 2, 3 and 0 thoughts."""


def model_with(family: str, attention: str) -> PreTrainedModel:
    model = make_model(family)
    model.config._attn_implementation = attention
    return model


def batch_of(layouts: list[Layout]) -> LatentInputs:
    thoughts = max(layout.num_thoughts for layout in layouts)
    return collate(layouts, [1.0] * len(layouts), thoughts, pad_id=3)[0]


def passes_for(model: PreTrainedModel, inputs: LatentInputs, reading: Callable | None = None) -> Passes:
    return passes_of(model, inputs, model.config.num_hidden_layers, reading or nullcontext)


def columns(inputs: LatentInputs, row: int) -> list[int]:
    """The batch's columns of a row's own tokens, in order: its prefix without pads, then those after the prefix."""
    width = inputs.prefix_ids.shape[1]
    length = int(inputs.last_position[row]) + 1
    own = int(inputs.prefix_last[row]) + 1
    return [*range(own), *range(width, width + length - own)]


def fill(inputs: LatentInputs, rows: list[Tensor]) -> Tensor:
    """The rows' embeddings in their columns [B, T, D]; pads get a large vector that would change what sees it."""
    width = sum(part.shape[1] for part in (inputs.prefix_ids, inputs.step_ids, inputs.rest_ids))
    whole = torch.full((len(rows), width, rows[0].shape[-1]), 9.0)
    for row, embeds in enumerate(rows):
        whole[row, columns(inputs, row)] = embeds
    return whole


def whole_states(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    """States [T, D] of one sequence in a single pass without a cache."""
    return model.base_model(inputs_embeds=embeds.unsqueeze(0), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("lengths", [[1, 1, 1, 2], [3, 2], [5]])
def test_states_and_gradients_are_those_of_each_whole_sequence(family, attention, lengths):
    """The columns after the prefix come in passes of these lengths: one by one, several at once, all at once."""
    model, inputs = model_with(family, attention), batch_of(LAYOUTS)
    rows = [slow_embeddings(model, layout)[0].detach().requires_grad_() for layout in LAYOUTS]
    weights = torch.randn(len(rows), 14, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for compute in (run_passes, run_whole):
        model.zero_grad()
        for row in rows:
            row.grad = None
        states = compute(model, inputs, rows, lengths)
        sum((state * weights[row, : len(state)]).sum() for row, state in enumerate(states)).backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in model.base_model.named_parameters()
            if parameter.grad is not None
        }
        results.append(([state.detach() for state in states], [row.grad.clone() for row in rows], gradients))
    (fast, fast_inputs, fast_weights), (slow, slow_inputs, slow_weights) = results
    for here, there in zip([*fast, *fast_inputs], [*slow, *slow_inputs], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)
    assert fast_weights.keys() == slow_weights.keys()
    for name, gradient in slow_weights.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(fast_weights[name], gradient, rtol=1e-3, atol=5e-5 * scale, msg=name)


def run_passes(model: PreTrainedModel, inputs: LatentInputs, rows: list[Tensor], lengths: list[int]) -> list[Tensor]:
    passes, whole, start = passes_for(model, inputs), fill(inputs, rows), inputs.prefix_ids.shape[1]
    parts = [passes.prefix(whole[:, :start])]
    for length in lengths:
        parts.append(passes.later(whole[:, start : start + length], start))
        start += length
    assert start == whole.shape[1]
    states = torch.cat(parts, dim=1)
    return [states[row, columns(inputs, row)] for row in range(len(rows))]


def run_whole(model: PreTrainedModel, inputs: LatentInputs, rows: list[Tensor], lengths: list[int]) -> list[Tensor]:
    return [whole_states(model, row) for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", KINDS)
def test_again_forgets_all_but_the_prefix(family, attention):
    """Other vectors in the same columns, three times over: each time as if it were the first."""
    model, inputs = model_with(family, attention), batch_of(LAYOUTS)
    width, generator = inputs.prefix_ids.shape[1], torch.Generator().manual_seed(1)
    passes, expected = passes_for(model, inputs), []
    prefix = model.get_input_embeddings()(inputs.prefix_ids)
    passes.prefix(prefix)
    for _ in range(3):
        embeds = torch.randn(len(LAYOUTS), 3, 32, generator=generator)
        states = passes.later(embeds, width, again=True)
        for row in range(len(LAYOUTS)):
            own = prefix[row, : int(inputs.prefix_last[row]) + 1]
            # A row that is shorter than the batch ends with pads, whose states are not compared.
            count = min(3, int(inputs.last_position[row]) + 1 - len(own))
            expected = whole_states(model, torch.cat([own, embeds[row, :count]]))[len(own) :]
            torch.testing.assert_close(states[row, :count], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", KINDS)
def test_two_batches_of_a_model_share_nothing(attention):
    """Passes of one batch between those of another change none of its bits."""
    model, first, second = model_with("llama", attention), batch_of(LAYOUTS), batch_of(LAYOUTS[1:])

    def steps(inputs: LatentInputs):
        passes, embed = passes_for(model, inputs), model.get_input_embeddings()
        yield passes.prefix(embed(inputs.prefix_ids))
        yield passes.later(embed(inputs.step_ids), inputs.prefix_ids.shape[1])

    alone = list(steps(first))
    one, other = steps(first), steps(second)
    mixed = [next(one)]
    next(other)
    mixed.append(next(one))
    next(other)
    assert all(torch.equal(here, there) for here, there in zip(mixed, alone, strict=True))


@pytest.mark.parametrize("attention", KINDS)
def test_only_the_pass_over_the_prefix_runs_in_the_given_context(attention):
    model, inputs = model_with("gpt2", attention), batch_of(LAYOUTS)
    log: list[str] = []

    class Reading(AbstractContextManager):
        def __enter__(self):
            log.append("begin")

        def __exit__(self, *error):
            log.append("end")

    model.base_model.h[0].register_forward_pre_hook(lambda module, given: log.append("pass"))
    embed, width = model.get_input_embeddings(), inputs.prefix_ids.shape[1]
    with torch.no_grad():
        passes = passes_for(model, inputs, Reading)
        passes.prefix(embed(inputs.prefix_ids))
        passes.later(embed(inputs.step_ids), width)
        passes.later(embed(inputs.step_ids), width, again=True)
    assert log == ["begin", "pass", "end", "pass", "pass"]


@pytest.mark.parametrize("attention", KINDS)
def test_the_models_attention_decides_the_kind_of_passes_and_is_left_as_it_was(attention):
    model, inputs = model_with("llama", attention), batch_of(LAYOUTS)
    passes = passes_for(model, inputs)
    assert type(passes) is KINDS[attention]
    passes.prefix(model.get_input_embeddings()(inputs.prefix_ids))
    assert model.config._attn_implementation == attention


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A sequence with 0 to 4 thoughts after its first tokens."""
    before, count, after = draw(st.integers(1, 6)), draw(st.integers(0, 4)), draw(st.integers(1, 5))
    ids = [*range(1, before + 1), *[THOUGHT] * count, *range(1, after + 1)]
    return Layout(ids, [IGNORE] * (len(ids) - 1) + ids[-1:], before if count else len(ids), count)


@settings(deadline=None)
@given(batch=st.lists(layouts(), min_size=1, max_size=4), count=st.integers(1, 6), data=st.data())
def test_positions_count_a_rows_own_tokens(batch, count, data):
    """Past the prefix; pads after a row's last token repeat its position."""
    inputs = batch_of(batch)
    width = inputs.prefix_ids.shape[1]
    start = data.draw(st.integers(width, width + 8))
    found = positions_of(inputs, start, count)
    for row, layout in enumerate(batch):
        own = columns(inputs, row)
        for place, column in enumerate(range(start, start + count)):
            assert found[row, place] == (own.index(column) if column in own else len(layout) - 1)
