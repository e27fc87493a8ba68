"""Stand-ins for the Triton kernels that vLLM's Model Runner V2 needs, so that the tests run it on a CPU.

The package index has no Triton with a CPU backend. vLLM lets a platform replace kernels (``register_kernels``); these
replacements compute the same with torch. Requests that need a kernel without a replacement are refused, since they
would end the engine. Sampling draws other random numbers than vLLM's own kernel.

To use them, put this folder on ``PYTHONPATH``: its ``dist-info`` makes it a plugin of vLLM, in every process.

Shapes:
    B  requests in a step
    V  vocabulary size
"""

from typing import Any

import torch
from torch import Tensor

# vLLM's own names, so that the arguments can be compared with those of the kernels.
PREFIX = "vllm.v1.worker.gpu."


def prepare_prefill_inputs(
    input_ids: Tensor,
    next_tokens: Tensor,
    _next_stride: int,
    num_lookahead: int,
    slots: Tensor,
    starts: Tensor,
    all_ids: Tensor,
    _all_stride: int,
    prefill_lengths: Tensor,
    computed: Tensor,
    **_: Any,
) -> None:
    """Copies the next tokens of the prompts that are not yet encoded."""
    bounds = starts.tolist()
    for row, slot in enumerate(slots.tolist()):
        done, length = int(computed[slot]), int(prefill_lengths[slot])
        if done >= length:
            continue
        end = done + bounds[row + 1] - bounds[row]
        input_ids[bounds[row] : bounds[row + 1]] = all_ids[slot, done:end]
        for ahead in range(num_lookahead):
            next_tokens[ahead, slot] = all_ids[slot, end + ahead] if end + ahead < length else 0


def prepare_pos_seq_lens(
    positions: Tensor, lengths: Tensor, slots: Tensor, starts: Tensor, computed: Tensor, _most: int, **_: Any
) -> None:
    """Positions of all tokens of the step, and the length of each sequence after it."""
    rows = len(slots)
    queries = (starts[1 : rows + 1] - starts[:rows]).long()
    before = computed[slots].long()
    lengths[:rows] = (before + queries).to(lengths.dtype)
    lengths[rows:] = 0
    total = int(queries.sum())
    first = torch.repeat_interleave(before - starts[:rows].long(), queries)
    positions[:total] = first + torch.arange(total)


def combine_sampled_and_draft_tokens(
    input_ids: Tensor,
    slots: Tensor,
    last: Tensor,
    starts: Tensor,
    lengths: Tensor,
    prefill_lengths: Tensor,
    _drafts: Tensor,
    _draft_stride: int,
    _bounds: Tensor,
    logit_places: Tensor,
    **_: Any,
) -> None:
    """Puts the token that was sampled last where a request writes; says whose logits are needed."""
    rows = len(slots)
    places = starts[1 : rows + 1].long() - 1
    logit_places.copy_(places)
    writes = lengths[:rows] > prefill_lengths[slots]
    input_ids[places[writes]] = last[slots[writes], 0].to(input_ids.dtype)


def get_num_sampled_and_rejected(
    num_sampled: Tensor, num_rejected: Tensor, lengths: Tensor, _bounds: Tensor, slots: Tensor, prefill_lengths: Tensor
) -> None:
    """One token for each request whose prompt is encoded, none for the others."""
    rows = len(slots)
    num_sampled[:rows].masked_fill_(lengths[:rows] < prefill_lengths[slots], 0)
    num_rejected.zero_()


def post_update(
    slots: Tensor,
    computed: Tensor,
    last: Tensor,
    counts: Tensor | None,
    _count_stride: int,
    sampled: Tensor,
    _sampled_stride: int,
    num_sampled: Tensor,
    _num_rejected: Tensor,
    starts: Tensor | None,
    all_ids: Tensor,
    _all_stride: int,
    total: Tensor,
    **_: Any,
) -> None:
    """Appends the sampled tokens to the requests' ids."""
    rows = len(slots)
    chosen = num_sampled[:rows] > 0
    writers, tokens = slots[chosen], sampled[:rows][chosen][:, 0]
    last[writers, 0] = tokens.to(last.dtype)
    all_ids[writers, total[writers].long()] = tokens.to(all_ids.dtype)
    total[writers] += 1
    if counts is not None:
        counts[writers, tokens.long()] += 1
    if starts is not None:
        computed[slots] += starts[1 : rows + 1] - starts[:rows]


def apply_write(
    output: Tensor,
    _stride: int,
    rows: Tensor,
    starts: Tensor,
    contents: Tensor,
    bounds: Tensor,
    _groups: None,
    **_: Any,
) -> None:
    """Writes pieces of ``contents`` into rows of ``output``."""
    begin = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), bounds.tolist(), strict=True):
        piece = contents[begin:end]
        if output.dim() == 1:
            output[row] = piece[0]
        else:
            output[row, start : start + len(piece)] = piece
        begin = end


def gumbel_sample(
    logits: Tensor, slots: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor, **_: Any
) -> Tensor:
    """Replaces the function of this name, whose kernel differs between versions.

    Returns the token with the largest logit of each row, after noise that depends on seed and position alone; without
    noise at temperature 0.
    """
    noised = logits.float()
    for row, slot in enumerate(slots.tolist()):
        if temperatures[slot] != 0:
            generator = torch.Generator().manual_seed(hash((int(seeds[slot]), int(positions[row]))) % 2**63)
            uniform = torch.rand(noised.shape[1], generator=generator).clamp(min=1e-20)
            noised[row] = noised[row] - (-uniform.log()).log()
    return noised.argmax(dim=-1)


def temperature(logits: Tensor, _stride: int, slots: Tensor, temperatures: Tensor, _vocabulary: int, **_: Any) -> None:
    """Divides the logits of requests that sample, in place."""
    divisors = temperatures[slots]
    logits.div_(torch.where(divisors == 0, 1.0, divisors).unsqueeze(1))


def bias(
    logits: Tensor,
    _stride: int,
    _vocabulary: int,
    slots: Tensor,
    num_allowed: Tensor,
    allowed: Tensor,
    _allowed_stride: int,
    num_biased: Tensor,
    biased: Tensor,
    _biased_stride: int,
    biases: Tensor,
    _bias_stride: int,
    positions: Tensor,
    least_lengths: Tensor,
    num_stops: Tensor,
    _restore: Tensor,
    stops: Tensor,
    _stop_stride: int,
    **_: Any,
) -> None:
    """Allowed tokens, ``logit_bias`` and ``min_tokens``."""
    for row, slot in enumerate(slots.tolist()):
        if count := int(num_allowed[slot]):
            kept = allowed[slot, :count].long()
            limited = torch.full_like(logits[row], -float("inf"))
            limited[kept] = logits[row, kept]
            logits[row] = limited
        if count := int(num_biased[slot]):
            logits[row, biased[slot, :count].long()] += biases[slot, :count]
        if (count := int(num_stops[slot])) and positions[row] + 1 < least_lengths[slot]:
            logits[row, stops[slot, :count].long()] = -float("inf")


def topk_log_softmax(
    output: Tensor, logits: Tensor, _stride: int, ids: Tensor, _ids_stride: int, _count: int, _vocabulary: int, **_: Any
) -> None:
    """Log probabilities of the tokens ``ids`` [B, K]."""
    output.copy_(logits.float().log_softmax(dim=-1).gather(1, ids.long()))


def ranks(output: Tensor, logits: Tensor, _stride: int, ids: Tensor, _vocabulary: int, **_: Any) -> None:
    """How many tokens are at least as probable as each of ``ids`` [B]."""
    output.copy_((logits >= logits.gather(1, ids.long().unsqueeze(1))).sum(dim=-1))


def gather_block_tables(tables: Any, idx_mapping: Tensor, num_reqs_padded: int, **_: Any) -> tuple[Tensor, ...]:
    """Replaces ``BlockTables.gather_block_tables``, whose kernel follows pointers."""
    for own, table in zip(tables.input_block_tables, tables.block_tables, strict=True):
        own[: len(idx_mapping)] = table.gpu[idx_mapping]
        own[len(idx_mapping) : num_reqs_padded] = 0
    return tuple(own[:num_reqs_padded] for own in tables.input_block_tables)


def compute_slot_mappings(
    tables: Any, idx_mapping: Tensor, query_start_loc: Tensor, positions: Tensor, num_tokens_padded: int, **_: Any
) -> Tensor:
    """Replaces ``BlockTables.compute_slot_mappings``: where in the cache each position of the step is stored."""
    rows = len(idx_mapping)
    queries = (query_start_loc[1 : rows + 1] - query_start_loc[:rows]).long()
    total = int(queries.sum())
    slots, places = torch.repeat_interleave(idx_mapping, queries), positions[:total]
    mappings: Tensor = tables.slot_mappings
    mappings.fill_(-1)
    sizes = getattr(tables, "kernel_block_sizes", tables.block_sizes)
    for group, (table, size) in enumerate(zip(tables.block_tables, sizes, strict=True)):
        blocks = table.gpu[slots, places // size].long()
        mappings[group, :total] = blocks * size + places % size
    return mappings[:, :num_tokens_padded]


def refuse_what_has_no_stand_in(_platform: Any, _prompt: Any, params: Any) -> None:
    """Replaces the platform's own check, which accepts every request."""
    from vllm.exceptions import VLLMValidationError

    given = {
        "prompt_logprobs": getattr(params, "prompt_logprobs", None) is not None,
        "logprob_token_ids": bool(getattr(params, "logprob_token_ids", None)),
        "min_p": bool(getattr(params, "min_p", 0)),
        "bad_words": bool(getattr(params, "bad_words", None)),
        "presence_penalty": bool(getattr(params, "presence_penalty", 0)),
        "frequency_penalty": bool(getattr(params, "frequency_penalty", 0)),
        "repetition_penalty": getattr(params, "repetition_penalty", 1) != 1,
    }
    if missing := [name for name, is_given in given.items() if is_given]:
        raise VLLMValidationError(f"{', '.join(missing)}: this test engine on a CPU has no kernel for it; leave it out")


def register() -> None:
    """Puts the stand-ins in the places of vLLM's kernels, unless there is a GPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.config import vllm as configuration
    from vllm.platforms.cpu import CpuPlatform
    from vllm.triton_utils import triton
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.utils.math_utils import cdiv, next_power_of_2
    from vllm.v1.worker.gpu.block_table import BlockTables
    from vllm.v1.worker.gpu.sample import sampler

    # vLLM refuses Model Runner V2 without it.
    configuration.HAS_TRITON = True
    # What launches of kernels compute with, whether or not there is a kernel.
    triton.next_power_of_2, triton.cdiv = next_power_of_2, cdiv
    register_kernels(
        {
            f"{PREFIX}input_batch._prepare_prefill_inputs_kernel": prepare_prefill_inputs,
            f"{PREFIX}input_batch._prepare_pos_seq_lens_kernel": prepare_pos_seq_lens,
            f"{PREFIX}input_batch._combine_sampled_and_draft_tokens_kernel": combine_sampled_and_draft_tokens,
            f"{PREFIX}input_batch._get_num_sampled_and_rejected_kernel": get_num_sampled_and_rejected,
            f"{PREFIX}input_batch._post_update_kernel": post_update,
            f"{PREFIX}buffer_utils._apply_write_kernel": apply_write,
            f"{PREFIX}sample.gumbel._temperature_kernel": temperature,
            f"{PREFIX}sample.logit_bias._bias_kernel": bias,
            f"{PREFIX}sample.logprob._topk_log_softmax_kernel": topk_log_softmax,
            f"{PREFIX}sample.logprob._ranks_kernel": ranks,
        }
    )
    sampler.gumbel_sample = gumbel_sample
    BlockTables.gather_block_tables = gather_block_tables
    BlockTables.compute_slot_mappings = compute_slot_mappings
    CpuPlatform.validate_request = classmethod(refuse_what_has_no_stand_in)
