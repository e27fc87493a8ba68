"""The arguments of transformers' ``generate``: which have an effect here, and what they mean for the engine."""

from collections.abc import Collection, Mapping
from typing import Any

from transformers import GenerationConfig

from coconut_ds.errors import DataError
from coconut_ds.generation.prompter import Writing
from coconut_ds.generation.requests import Sampling

OURS = (
    *("max_new_tokens", "max_length", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p"),
    *("num_return_sequences", "pad_token_id", "eos_token_id", "stop_strings", "return_dict_in_generate"),
)
"""The arguments of transformers' ``generate`` that have an effect."""
WITHOUT_EFFECT = ("use_cache", "bos_token_id", "transformers_version", "tokenizer", "cache_implementation")
"""Arguments that change no token."""
NEUTRAL: dict[str, Any] = {
    **{"num_beams": 1, "num_beam_groups": 1, "early_stopping": False, "length_penalty": 1.0, "diversity_penalty": 0.0},
    **{"min_length": 0, "typical_p": 1.0, "min_p": 0.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    **{"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0},
    **{"remove_invalid_values": False, "renormalize_logits": False, "token_healing": False, "guidance_scale": 1.0},
    **{"output_scores": False, "output_logits": False, "output_hidden_states": False, "output_attentions": False},
    **{"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4},
    **{"assistant_lookbehind": 10, "target_lookbehind": 10, "synced_gpus": False},
    **{"logits_processor": [], "stopping_criteria": []},
}
"""Arguments that are accepted with the value that switches them off, which is transformers' default."""


def effective(config: GenerationConfig | None, settings: Mapping[str, Any], ends: Collection[int]) -> dict[str, Any]:
    """The settings that have an effect, of those that ``config`` and ``settings`` give; the latter come first.

    Args:
        config: what a tool set; only what differs from transformers' defaults counts.
        settings: the arguments.
        ends: the ids that end a text.

    Raises:
        DataError: a setting is not supported.
    """
    given = {} if config is None else config.to_diff_dict()
    given = {key: value for key, value in {**given, **settings}.items() if value is not None}
    wanted = given.get("eos_token_id", [])
    if not set(wanted if isinstance(wanted, list) else [wanted]) <= set(ends):
        raise DataError(f"eos_token_id={wanted}: the ends of text are those of the checkpoint, {sorted(ends)}")
    for key, value in given.items():
        if key in OURS or key in WITHOUT_EFFECT or key.startswith("_"):
            continue
        if key not in NEUTRAL or value != NEUTRAL[key]:
            raise DataError(f"{key}={value!r}: is not supported; expected any of {', '.join(OURS)}")
    return {key: value for key, value in given.items() if key in OURS}


def writing_of(options: Mapping[str, Any], width: int, seed: int, keep_thoughts: bool) -> Writing:
    """How to write after prompts of ``width`` positions; sampling from all tokens unless ``top_k`` is set.

    Raises:
        DataError: there is no room for a token.
    """
    most = options.get("max_new_tokens")
    if most is None:
        most = options["max_length"] - width if "max_length" in options else 128
    if most < 1:
        raise DataError(f"max_new_tokens={most} after prompts of {width} positions: expected 1 or more")
    temperature = float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0
    stop = options.get("stop_strings") or ()
    return Writing(
        int(most),
        int(options.get("min_new_tokens", 0)),
        Sampling(temperature, options.get("top_k") or None, float(options.get("top_p", 1.0)), seed),
        (stop,) if isinstance(stop, str) else tuple(stop),
        keep_thoughts,
    )
