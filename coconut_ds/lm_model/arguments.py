"""Checks what lm-evaluation-harness passes to a model: numbers, device, batch size and ``generation_kwargs``."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import DataError
from coconut_ds.generation.prompter import Writing
from coconut_ds.generation.requests import Sampling

log = logging.getLogger("lm_eval.coconut")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_SIZE = 32
"""Default number of requests that run at a time."""
GENERATION_KEYS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
"""The keys of a task's ``generation_kwargs`` that are supported, in the harness's names."""
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "n", "best_of"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "penalty_alpha", "no_repeat_ngram_size"), 0),
    **dict.fromkeys(("min_p", "min_new_tokens", "min_length", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("ignore_eos", "output_scores", "return_dict_in_generate"), False),
    "skip_special_tokens": True,
}
"""Other keys, each with the value that changes nothing, so that tasks may set them to it."""
INERT = ("use_cache", "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "pad_token_id")
"""Keys that change nothing whatever their value: they are about speed, padding or several beams."""


def stated(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``generation_kwargs`` that have a value."""
    return {key: value for key, value in options.items() if value is not None}


def writing_of(options: Mapping[str, Any], seed: int, index: int) -> Writing:
    """How to generate the text of request ``index``.

    Args:
        options: a task's ``generation_kwargs``, as the harness's ``normalize_gen_kwargs`` returns them.
        seed: seed of the random draws.
        index: index of the request, whose random draws differ from those of others.

    Raises:
        DataError: a key is unknown, or would change the text in a way that is not supported.
    """
    refused = [
        f"{key}={value!r}"
        for key, value in options.items()
        if key not in (*GENERATION_KEYS, *INERT) and not (key in NEUTRAL and value == NEUTRAL[key])
    ]
    if refused:
        raise DataError(
            f"generation_kwargs: found {', '.join(refused)}; expected {', '.join(GENERATION_KEYS)}, or a value that "
            "changes nothing, such as num_beams=1; --gen_kwargs sets another value"
        )
    # A task asks for greedy decoding by do_sample=false, or by leaving temperature out or setting it to 0.
    temperature = float(options.get("temperature", 0.0)) if options["do_sample"] else 0.0
    # 0 and -1 are how other programs switch top_k off.
    top_k = int(options.get("top_k", 0))
    sampling = Sampling(temperature, top_k if top_k > 0 else None, float(options.get("top_p", 1.0)), seed, sample=index)
    return Writing(options["max_gen_toks"], sampling=sampling, stop=tuple(text for text in options["until"] if text))


def number(name: str, value: Any) -> int | None:
    """A whole number of ``model_args``, or None.

    Raises:
        DataError: the value is no whole number.
    """
    if value is None:
        return None
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or isinstance(value, bool) or (isinstance(value, float) and value != whole):
        raise DataError(f"{name}={value}: expected a whole number")
    return whole


def slots(batch_size: int | str | None, most: int | None) -> int:
    """The number of requests that run at a time; see ``CoconutLM``."""
    if batch_size is None or (isinstance(batch_size, int) and batch_size == 1):
        return BATCH_SIZE
    count = (most or BATCH_SIZE) if str(batch_size).startswith("auto") else number("batch_size", batch_size)
    if count is None or count < 1:
        raise DataError(f"batch_size={batch_size}: expected 1 or more, or auto")
    return count


def usable_device(name: str | None) -> torch.device:
    """The device that computes. The harness asks for ``cuda:0`` unless told otherwise, even where there is no GPU.

    Raises:
        DataError: there is no device of this name.
    """
    if name is None:
        return alone().device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(f"device={name}: unknown; expected cpu, or an accelerator such as cuda or cuda:0") from error
    there = alone().device
    if device.type == "cpu" or (device.type == there.type and (device.index or 0) < torch.accelerator.device_count()):
        return device
    if device.type == "cuda" and there.type != "cuda":
        log.warning("there is no CUDA device: computing on %s instead of %s", there, name)
        return there
    raise DataError(f"device={name}: this machine has no such device; set --device {there.type}, or leave it out")
