"""Spans: which columns of the cache a one-position pass reads for which rows."""

import random
from itertools import pairwise

import torch

from coconut_ds.generation import spans
from coconut_ds.generation.attention import slot_attention
from coconut_ds.generation.spans import Span, reading, spans_of


def test_spans_cover_all_rows_and_each_boundary_saves_enough():
    rng = random.Random(0)
    for _ in range(300):
        needed = [rng.choice([1, rng.randint(1, 40), rng.randint(1, 2000)]) for _ in range(rng.randint(1, 12))]
        num_bytes = rng.choice([64, 2048, 1 << 20])
        found = spans_of(needed, num_bytes)
        assert [row for first, end, _ in found for row in range(first, end)] == list(range(len(needed)))
        assert all(columns == max(needed[first:end]) for first, end, columns in found)
        for earlier, later in pairwise(found):
            joined = max(earlier.columns, needed[later.first])
            extra = (later.first - earlier.first) * (joined - earlier.columns) + joined - needed[later.first]
            assert extra * num_bytes > spans.SPLIT_BYTES
    assert spans_of([5, 7, 6], 1) == [Span(0, 3, 7)]


def test_rows_attend_to_the_columns_of_their_span_only():
    """Against attention of each row alone; what is beyond a row's span is NaN, which any read would spread."""
    generator = torch.Generator().manual_seed(0)
    needed, heads, kv_heads, size = [3, 4, 40, 1, 1, 9], 4, 2, 8
    found = [Span(0, 2, 4), Span(2, 3, 40), Span(3, 5, 1), Span(5, 6, 9)]
    query = torch.randn(6, heads, 1, size, generator=generator)
    keys, values = (torch.randn(6, kv_heads, 40, size, generator=generator) for _ in range(2))
    for first, end, columns in found:
        keys[first:end, :, columns:] = values[first:end, :, columns:] = float("nan")
    mask = torch.where(torch.arange(40) < torch.tensor(needed)[:, None], 0.0, float("-inf"))[:, None, None]
    with reading(found):
        output, _ = slot_attention(torch.nn.Module(), query, keys, values, mask)
    for row, count in enumerate(needed):
        key, value = (each[row, :, :count].repeat_interleave(heads // kv_heads, 0) for each in (keys, values))
        weights = (query[row] @ key.transpose(1, 2) / size**0.5).softmax(-1)
        torch.testing.assert_close(output[row, 0], (weights @ value)[:, 0])
