"""Triton kernels of the part attention: one forward, and two backward, for queries and for keys.

They are launched by ``triton_attention.py``, whose docstring lists the shapes. Keys and values are contiguous
[B, K, columns, E]. Queries, outputs and their gradients are [B, H, Q, E] with any strides, except that the last one is
1. Sums of exponentials, weights and gradients of the scores are in fp32; matrix products read them in the type of the
queries and add up in fp32.

Each program handles one pair (row of the batch, key/value head). The n queries that share this head form the rows of
its matrix products, which have at least 16 rows, as the hardware's do.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

LENGTHS = ["count", "width", "later", "length"]
"""Arguments that differ between batches; Triton must not compile the kernels again for each of their values."""


def blocks(n: int, size: int, is_fp32: bool) -> dict[str, int]:
    """Sizes of the kernels' blocks, powers of two: ROWS of queries, COLUMNS of keys, and SIZE of a head.

    Matrix units multiply at least 16 rows. They do not multiply in fp32: such products take more shared memory and
    registers, so blocks are smaller.
    """
    most, columns = (16, 32) if is_fp32 else (64, 64)
    rows = min(max(triton.next_power_of_2(n), 16), most)
    return {"ROWS": rows, "COLUMNS": columns, "SIZE": max(triton.next_power_of_2(size), 16)}


@triton.jit
def _head_and_place(pair, rows, kv_heads, groups, count):
    """Of each of the rows of a program: its query head, and its position among the Q of the pass."""
    return (pair % kv_heads) * groups + rows // count, rows % count


@triton.jit
def _load_rows(pointer, batch, head, place, stride_b, stride_h, stride_q, rows, n, size, SIZE: tl.constexpr):
    """Rows of queries, outputs or their gradients; zeros beyond the n-th row."""
    entries = tl.arange(0, SIZE)
    places = pointer + batch * stride_b + head[:, None] * stride_h + place[:, None] * stride_q + entries[None, :]
    return tl.load(places, mask=(rows < n)[:, None] & (entries < size)[None, :], other=0.0)


@triton.jit
def _load_columns(pointer, pair, columns, length, size, SIZE: tl.constexpr):
    """Columns of keys or values; zeros beyond the last column."""
    entries = tl.arange(0, SIZE)
    places = pointer + (pair * length + columns)[:, None] * size + entries[None, :]
    return tl.load(places, mask=(columns < length)[:, None] & (entries < size)[None, :], other=0.0)


@triton.jit
def _visible(pads, batch, columns, length, place, count, LATER: tl.constexpr, HAS_PADS: tl.constexpr):
    """Which columns each row attends to: of the later positions those up to its own, of the prefix all real ones."""
    visible = (columns < length)[None, :] & (place >= 0)[:, None]
    if LATER:
        visible = visible & (columns[None, :] <= (length - count + place)[:, None])
    elif HAS_PADS:
        padding = tl.load(pads + batch * length + columns, mask=columns < length, other=1)
        visible = visible & (padding == 0)[None, :]
    return visible


@triton.jit
def _attend(query, keys, values, visible, scale, highest, total, output):
    """Adds some columns to a running softmax; returns its new highest score, sum of exponentials, and output."""
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(visible, scores, float("-inf"))
    new = tl.maximum(highest, tl.max(scores, axis=1))
    weights = tl.exp(scores - new[:, None])
    kept = tl.exp(highest - new)
    output = output * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return new, total * kept + tl.sum(weights, axis=1), output


@triton.jit
def _score_gradients(query, keys, values, d_output, visible, log_sum, delta, scale):
    """The attention weights of some columns, and the gradients of their scores before scaling."""
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    weights = tl.exp(tl.where(visible, scores, float("-inf")) - log_sum[:, None])
    d_weights = tl.dot(d_output, tl.trans(values), input_precision="ieee")
    return weights, weights * (d_weights - delta[:, None])


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    query, prefix_keys, prefix_values, later_keys, later_values, pads, output, log_sums,
    query_b, query_h, query_q, output_b, output_h, output_q,
    scale, kv_heads, groups, count, width, later, size,
    HAS_PADS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Outputs, and the logarithm of each row's sum of exponentials [B, H, Q], for a block of rows of one pair."""
    pair = tl.program_id(0).to(tl.int64)
    batch = pair // kv_heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = groups * count
    head, place = _head_and_place(pair, rows, kv_heads, groups, count)
    mine = _load_rows(query, batch, head, place, query_b, query_h, query_q, rows, n, size, SIZE)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, SIZE], tl.float32)
    # The later positions come first: every row attends to the first of them, so the highest score is finite from then
    # on, even if a block of the prefix is all padding.
    for start in range(0, later, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        visible = _visible(pads, batch, columns, later, place, count, True, False)
        keys = _load_columns(later_keys, pair, columns, later, size, SIZE)
        values = _load_columns(later_values, pair, columns, later, size, SIZE)
        highest, total, result = _attend(mine, keys, values, visible, scale, highest, total, result)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        visible = _visible(pads, batch, columns, width, place, count, False, HAS_PADS)
        keys = _load_columns(prefix_keys, pair, columns, width, size, SIZE)
        values = _load_columns(prefix_values, pair, columns, width, size, SIZE)
        highest, total, result = _attend(mine, keys, values, visible, scale, highest, total, result)
    result = result / total[:, None]
    entries = tl.arange(0, SIZE)
    places = output + batch * output_b + head[:, None] * output_h + place[:, None] * output_q + entries[None, :]
    tl.store(places, result.to(mine.dtype), mask=(rows < n)[:, None] & (entries < size)[None, :])
    # [B, H, Q] is [B, K, n].
    tl.store(log_sums + pair * n + rows, highest + tl.log(total), mask=rows < n)


@triton.jit(do_not_specialize=LENGTHS)
def query_gradient_kernel(
    query, prefix_keys, prefix_values, later_keys, later_values, pads, output, log_sums, d_output, d_query, deltas,
    query_b, query_h, query_q, output_b, output_h, output_q, d_output_b, d_output_h, d_output_q,
    d_query_b, d_query_h, d_query_q,
    scale, kv_heads, groups, count, width, later, size,
    HAS_PADS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, and ``deltas`` [B, H, Q], the products of outputs and their gradients."""
    pair = tl.program_id(0).to(tl.int64)
    batch = pair // kv_heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = groups * count
    head, place = _head_and_place(pair, rows, kv_heads, groups, count)
    mine = _load_rows(query, batch, head, place, query_b, query_h, query_q, rows, n, size, SIZE)
    made = _load_rows(output, batch, head, place, output_b, output_h, output_q, rows, n, size, SIZE)
    d_made = _load_rows(d_output, batch, head, place, d_output_b, d_output_h, d_output_q, rows, n, size, SIZE)
    log_sum = tl.load(log_sums + pair * n + rows, mask=rows < n, other=0.0)
    delta = tl.sum(made.to(tl.float32) * d_made.to(tl.float32), axis=1)
    tl.store(deltas + pair * n + rows, delta, mask=rows < n)
    result = tl.zeros([ROWS, SIZE], tl.float32)
    for start in range(0, later, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        visible = _visible(pads, batch, columns, later, place, count, True, False)
        keys = _load_columns(later_keys, pair, columns, later, size, SIZE)
        values = _load_columns(later_values, pair, columns, later, size, SIZE)
        _, d_scores = _score_gradients(mine, keys, values, d_made, visible, log_sum, delta, scale)
        result += tl.dot(d_scores.to(keys.dtype), keys, input_precision="ieee")
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        visible = _visible(pads, batch, columns, width, place, count, False, HAS_PADS)
        keys = _load_columns(prefix_keys, pair, columns, width, size, SIZE)
        values = _load_columns(prefix_values, pair, columns, width, size, SIZE)
        _, d_scores = _score_gradients(mine, keys, values, d_made, visible, log_sum, delta, scale)
        result += tl.dot(d_scores.to(keys.dtype), keys, input_precision="ieee")
    entries = tl.arange(0, SIZE)
    places = d_query + batch * d_query_b + head[:, None] * d_query_h + place[:, None] * d_query_q + entries[None, :]
    tl.store(places, (result * scale).to(mine.dtype), mask=(rows < n)[:, None] & (entries < size)[None, :])


@triton.jit(do_not_specialize=LENGTHS)
def key_gradient_kernel(
    query, keys, values, pads, log_sums, d_output, deltas, d_keys, d_values,
    query_b, query_h, query_q, d_output_b, d_output_h, d_output_q,
    scale, kv_heads, groups, count, length, size,
    LATER: tl.constexpr, HAS_PADS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values of one pair: of later positions (``LATER``), or of the prefix."""
    pair = tl.program_id(0).to(tl.int64)
    batch = pair // kv_heads
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    n = groups * count
    my_keys = _load_columns(keys, pair, columns, length, size, SIZE)
    my_values = _load_columns(values, pair, columns, length, size, SIZE)
    result_keys = tl.zeros([COLUMNS, SIZE], tl.float32)
    result_values = tl.zeros([COLUMNS, SIZE], tl.float32)
    for start in range(0, n, ROWS):
        rows = start + tl.arange(0, ROWS)
        head, place = _head_and_place(pair, rows, kv_heads, groups, count)
        queries = _load_rows(query, batch, head, place, query_b, query_h, query_q, rows, n, size, SIZE)
        d_made = _load_rows(d_output, batch, head, place, d_output_b, d_output_h, d_output_q, rows, n, size, SIZE)
        log_sum = tl.load(log_sums + pair * n + rows, mask=rows < n, other=0.0)
        delta = tl.load(deltas + pair * n + rows, mask=rows < n, other=0.0)
        visible = _visible(pads, batch, columns, length, place, count, LATER, HAS_PADS)
        weights, d_scores = _score_gradients(queries, my_keys, my_values, d_made, visible, log_sum, delta, scale)
        result_values += tl.dot(tl.trans(weights.to(d_made.dtype)), d_made, input_precision="ieee")
        result_keys += tl.dot(tl.trans(d_scores.to(queries.dtype)), queries, input_precision="ieee")
    entries = tl.arange(0, SIZE)
    places = (pair * length + columns)[:, None] * size + entries[None, :]
    inside = (columns < length)[:, None] & (entries < size)[None, :]
    tl.store(d_keys + places, (result_keys * scale).to(my_keys.dtype), mask=inside)
    tl.store(d_values + places, result_values.to(my_keys.dtype), mask=inside)
