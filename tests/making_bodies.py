"""Bodies of requests for ``fuzz_bodies.py``: valid ones, wrong ones of every kind, and large ones.

A body is a function of a seed and a number, so that a fault can be made again.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from making_fields import LIMITS, Fields, nested, text, valid, with_raw, wrong
from making_large_bodies import HEAVY


@dataclass(frozen=True)
class Body:
    """A request."""

    kind: str
    path: str
    content: bytes


def body_of(seed: int, number: int, heavy: float = 0.02, only: str | None = None) -> Body:
    """The body with this number.

    Args:
        seed: of the whole sequence.
        number: of the body.
        heavy: share of bodies of up to 1 MiB and of requests for the largest answers.
        only: the only kind; None: all kinds.
    """
    rng = random.Random(f"{seed}/{number}")
    names = list(HEAVY) if rng.random() < heavy else list(LIGHT)
    kind = rng.choice(names) if only is None else only
    path, content = {**LIGHT, **HEAVY}[kind](rng)
    return Body(kind, path, content if isinstance(content, bytes) else _encoded(rng, content))


def _valid(rng: random.Random) -> tuple[str, Any]:
    return valid(rng)


def _changed(rng: random.Random) -> tuple[str, Any]:
    """Some fields have other values, are missing, or are unknown."""
    path, fields = valid(rng)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(fields) or ["model"])
        change = rng.randrange(4)
        if change == 0:
            fields.pop(name, None)
        elif change == 1:
            fields[text(rng)] = wrong(rng)
        else:
            fields[name] = wrong(rng)
    return path, fields


def _wrong_inside(rng: random.Random) -> tuple[str, Any]:
    """A part of a message, an item of a list or an option is wrong."""
    path, fields = valid(rng)
    part = {"type": rng.choice(["text", "image_url", wrong(rng)]), "text": wrong(rng)}
    message = {"role": rng.choice(["user", "tool", wrong(rng)]), "content": rng.choice([[part], wrong(rng)])}
    inside = {"messages": [message], "prompt": [wrong(rng), wrong(rng)], "stop": [wrong(rng)]}
    inside |= {"tokens": [wrong(rng)], "stream_options": {text(rng): wrong(rng)}}
    name = rng.choice(list(inside))
    return path, {**fields, name: inside[name]}


def _at_limits(rng: random.Random) -> tuple[str, Any]:
    path, fields = valid(rng)
    for name in rng.sample(list(LIMITS), rng.randint(1, 2)):
        fields[name] = rng.choice(LIMITS[name])
    if fields.get("max_tokens", 0) in range(100, 2050):
        fields["model"] = rng.choice(["coconut", "no_cot", "thirteen"])
    return path, fields


def _broken(rng: random.Random) -> tuple[str, bytes]:
    """Bytes of a valid body that are changed, cut, repeated or encoded otherwise."""
    path, fields = valid(rng)
    data = bytearray(json.dumps(fields, ensure_ascii=False).encode())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        change = rng.randrange(4)
        if change == 0:
            data[place:] = b""
        elif change == 1:
            data[place:place] = rng.randbytes(rng.randint(1, 4))
        elif change == 2 and place < len(data):
            data[place] = rng.randrange(256)
        else:
            data[place:place] = rng.choice([b",", b"{", b"]", b'"', b"\\u", b"1e999", b"NaN", b"-", b"\xff", b"\0"])
    return path, bytes(data)


def _deep(rng: random.Random) -> tuple[str, bytes]:
    """A value nested 10 to 2,000 deep, in a field or as the whole body."""
    path, fields = valid(rng)
    value = nested(rng.choice([10, 100, 500, 900, 950, 980, 990, 2000]), rng.choice(["[", '{"a":']))
    name = rng.choice([*fields, "metadata", "tools", "logit_bias", "stop", "messages", "unknown"])
    return path, with_raw(fields, name, value)


def _huge_number(rng: random.Random) -> tuple[str, bytes]:
    path, fields = valid(rng)
    digits = rng.choice(["1", "9", "123"]) * rng.choice([20, 400, 4299, 4301, 5000])
    value = rng.choice(
        [digits, f"-{digits}", f"{digits}.5", f"0.{digits}", f"1e{digits[:400]}", f"{digits}e-{digits[:5]}"]
    )
    return path, with_raw(fields, rng.choice([*fields, "seed", "user"]), value)


def _repeated_keys(rng: random.Random) -> tuple[str, bytes]:
    path, fields = valid(rng)
    name = rng.choice(list(fields))
    return path, with_raw(fields, name, json.dumps(wrong(rng)))


LIGHT: dict[str, Callable[[random.Random], tuple[str, Any]]] = {
    "valid": _valid,
    "changed": _changed,
    "wrong_inside": _wrong_inside,
    "at_limits": _at_limits,
    "broken": _broken,
    "deep": _deep,
    "huge_number": _huge_number,
    "repeated_keys": _repeated_keys,
}


def _encoded(rng: random.Random, fields: Fields) -> bytes:
    """JSON in UTF-8, with characters beyond ASCII escaped or not, or in another encoding."""
    if rng.random() < 0.05:
        return json.dumps(fields).encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
