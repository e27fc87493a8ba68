"""Bodies up to the largest size, and requests for the largest answers, for ``fuzz_bodies.py``."""

import json
import random
from collections.abc import Callable
from typing import Any

from making_fields import BODY_BYTES, CHAT, COMPLETIONS, MODELS, THOUGHTS, Fields, nested, valid, with_raw


def _many(rng: random.Random) -> tuple[str, Any]:
    """As many wrong items as fit."""
    path, fields = valid(rng)
    item = rng.choice(["1", "null", "[]", "{}", '""', "1.5", '{"":0}', "true", "[[]]", '{"type":"text"}', "-1"])
    repeated = "[" + ",".join([item] * ((BODY_BYTES - 4000) // (len(item) + 1))) + "]"
    inside = [repeated, f'[{{"role":"user","content":{repeated}}}]', f"[{repeated}]", f'{{"a":{repeated}}}']
    name = rng.choice([*fields, "messages", "prompt", "stop", "tokens", "metadata", "logit_bias", "stream_options"])
    return path, with_raw(fields, name, rng.choice(inside))


def _many_keys(rng: random.Random) -> tuple[str, Any]:
    path, fields = valid(rng)
    keys = ",".join(f'"{number:x}":0' for number in range(BODY_BYTES // 10 - 2000))
    if rng.random() < 0.5:
        return path, (json.dumps(fields)[:-1] + "," + keys + "}").encode()
    return path, with_raw(fields, rng.choice(["messages", "stream_options", "logit_bias", "user"]), f"{{{keys}}}")


def _long_text(rng: random.Random) -> tuple[str, bytes]:
    path, fields = valid(rng)
    unit = rng.choice(["a", "ab ", "\\u0000", "\\ud800", "é", "\U0001f600", "\\\\", "0", " "])
    size = rng.choice([20_000, 200_000, BODY_BYTES - 4000])
    name = rng.choice([*fields, "prompt", "question", "stop", "user", "messages"])
    value = f'"{unit * (size // len(unit.encode()))}"'
    if name == "messages" and rng.random() < 0.7:
        value = f'[{{"role":"user","content":{value}}}]'
    return path, with_raw(fields, name, value)


def _long_number(rng: random.Random) -> tuple[str, bytes]:
    path, fields = valid(rng)
    digits = "7" * rng.choice([100_000, BODY_BYTES - 4000])
    value = rng.choice([digits, f"{digits}.5", f"0.{digits}", f"{digits}e-{len(digits)}", f"1e{digits}"])
    return path, with_raw(fields, rng.choice([*fields, "seed", "user"]), value)


def _very_deep(rng: random.Random) -> tuple[str, bytes]:
    path, fields = valid(rng)
    value = nested(rng.choice([10_000, 100_000, 150_000]), rng.choice(["[", '{"a":']))
    return path, with_raw(fields, rng.choice([*fields, "metadata"]), value)


def _many_parts(rng: random.Random) -> tuple[str, Any]:
    """Valid, but as many parts or prompts as fit."""
    _, fields = valid(rng)
    fields = {"model": fields["model"], "max_tokens": 1}
    if rng.random() < 0.5:
        part = {"type": "text", "text": ""}
        return CHAT, {**fields, "messages": [{"role": "user", "content": [part] * (BODY_BYTES // 40)}]}
    return COMPLETIONS, {**fields, "prompt": [[1] * rng.choice([2000, 8192, 20_000])] * 16}


def _large_answer(rng: random.Random) -> tuple[str, Any]:
    """As many completions, tokens, log probabilities and thoughts as the limits allow, or more."""
    fields: Fields = {"model": rng.choice(MODELS), "n": rng.choice([1, 4, 16]), "stream": rng.random() < 0.4}
    fields |= {"max_tokens": rng.choice([64, 128, 200]), "temperature": 1, "logprobs": rng.choice([None, 5, 50])}
    fields["min_tokens"] = fields["max_tokens"]
    if rng.random() < 0.3:
        fields |= {"return_thoughts": True, "thought_top_k": 50, "n_thoughts": 32, "max_tokens": 8, "min_tokens": 0}
    if rng.random() < 0.2:
        fields |= {"model": "long", "n": 2, "max_tokens": 1200, "min_tokens": 1200}
    if rng.random() < 0.2:
        few = {name: fields[name] for name in ("model", "max_tokens")}
        return THOUGHTS, {**few, "question": "a b c", "n_thoughts": 60, "top_k": 50, "layers": True}
    return COMPLETIONS, {**fields, "prompt": ["a b c", "the cat"]}


HEAVY: dict[str, Callable[[random.Random], tuple[str, Any]]] = {
    "many": _many,
    "many_keys": _many_keys,
    "long_text": _long_text,
    "long_number": _long_number,
    "very_deep": _very_deep,
    "many_parts": _many_parts,
    "large_answer": _large_answer,
}
