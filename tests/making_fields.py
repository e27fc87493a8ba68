"""Fields of requests, right and wrong, of which ``making_bodies.py`` makes bodies."""

import json
import random
import sys
from collections.abc import Sequence
from typing import Any

MODELS = ("coconut", "no_cot", "thirteen", "long")
BODY_BYTES = 1 << 20
"""The largest size that the server accepts."""
COMPLETIONS, CHAT, THOUGHTS = "/v1/completions", "/v1/chat/completions", "/v1/thoughts"
Fields = dict[str, Any]


def text(rng: random.Random, most: int = 40) -> str:
    """A short text: plain, of all planes of Unicode, or of what programs often get wrong."""
    length = rng.randint(0, most)
    alphabet = rng.choice([PLAIN, PLAIN, ODD, None])
    if alphabet is not None:
        return "".join(rng.choice(alphabet) for _ in range(length))
    return "".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(length))


PLAIN = "abc the cat 12+=. "
ODD = (
    '\0\x01\x1f"\\/\n\r\t\x7f\x85\u00a0\u00ad\u200b\u200d\u202e\u2028\ufeff\ufffd\ufffe'
    "\ud800\udfff\U0001f600\u0301İßǅﬁ{}%s<>"
)


def nested(depth: int, opening: str, inner: str = "0") -> str:
    """JSON of this depth, made of lists or objects."""
    ends = "".join({"[": "]", '{"a":': "}"}[opening] for _ in range(depth))
    return opening * depth + inner + ends


def wrong(rng: random.Random) -> Any:
    """A value that few fields accept."""
    return rng.choice(
        [
            None,
            True,
            False,
            -1,
            0,
            1,
            1.5,
            -0.0,
            1e-308,
            5e-324,
            1e308,
            2**31 - 1,
            2**31,
            -(2**63) - 1,
            10**30,
            float("nan"),
            float("inf"),
            16.0,
            1e22,
            "",
            "8",
            text(rng),
            [],
            [[]],
            [None],
            [1, "a"],
            [text(rng), text(rng)],
            {},
            {"type": "text"},
            {text(rng): text(rng)},
        ]
    )


NUMBERS: dict[str, Sequence[Any]] = {
    "n": (1, 2, 3),
    "temperature": (0, 0.7, 1, 100, 1e-308, 5e-324, 1e-3),
    "top_p": (1, 0.5, 1e-300, 5e-324, 0.999999),
    "top_k": (-1, 0, 1, 5, 2**31 - 1),
    "seed": (0, -1, 2**63 - 1, -(2**63), 7.0),
    "max_tokens": (1, 2, 4, 6),
    "min_tokens": (0, 1),
    "n_thoughts": (0, 1, 3),
    "force_text_after": (0, 1, 2),
    "min_thoughts": (0, 1),
    "max_thoughts": (1, 2, 4),
    "stream": (True, False),
    "return_thoughts": (True, False),
    "thought_top_k": (1, 5, 50),
}
"""Valid values of fields that both kinds of completion have."""
NOISES: Sequence[Fields] = (
    {"thought_noise": "none"},
    *({"thought_noise": "gaussian", "thought_sigma": sigma} for sigma in (0, 0.5, 1000)),
    *({"thought_noise": "dropout", "thought_dropout": share} for share in (0, 0.5, 0.999)),
)
"""Valid values of the fields of noise in thoughts."""
LIMITS: dict[str, Sequence[Any]] = {
    "n": (0, 16, 17, 2**31 - 1, 2**31),
    "temperature": (100.001, -0.001, 1e308),
    "top_p": (0, 1.0000001),
    "top_k": (-2, 2**31 - 1, 2**31),
    "seed": (2**63, -(2**63) - 1),
    "max_tokens": (0, 200, 256, 2048, 2049, 2**31 - 1),
    "min_tokens": (128, 129, 2048),
    "n_thoughts": (64, 65, 2**31 - 1),
    "force_text_after": (64, 65),
    "min_thoughts": (64, 65),
    "max_thoughts": (64, 65),
    "thought_noise": ("svp", "", 0),
    "thought_sigma": (-0.001, 1000.001, 1e308),
    "thought_dropout": (-0.001, 1, 1.5),
    "thought_top_k": (0, 50, 51),
    "logprobs": (0, 13, 50, 51),
    "top_logprobs": (0, 13, 50, 51),
    "stop": ([], ["a"] * 4, ["a"] * 5, "a" * 64, "a" * 65, [""]),
    "prompt": ("", [], [""], [[]], ["a"] * 16, ["a"] * 17, [-1], [2**31], [[0], [1]], [0.0]),
    "messages": ([], [{"role": "user", "content": "a"}] * 256, [{"role": "user", "content": "a"}] * 257),
    "tokens": (["a"] * 16, ["a"] * 17),
}
"""Values at and beyond the limits of each field."""
NEUTRAL = {"frequency_penalty": 0, "user": "me", "logit_bias": {}, "best_of": 1, "echo": False, "tools": [], "min_p": 0}


def valid(rng: random.Random) -> tuple[str, Fields]:
    """A request with any combination of fields; some combinations contradict each other."""
    path = rng.choice([COMPLETIONS, COMPLETIONS, CHAT, THOUGHTS])
    question = "".join(rng.choice(PLAIN) for _ in range(rng.randint(1, 30)))
    fields: Fields = {"model": rng.choice(MODELS), "max_tokens": rng.randint(1, 4)}
    fields |= rng.choice(NOISES) if rng.random() < 0.2 else {}
    if path == THOUGHTS:
        own = {"n_thoughts": (0, 1, 3), "force_text_after": (1, 2), "top_k": (1, 5, 50), "layers": (True, False)}
        fields |= {name: rng.choice(values) for name, values in own.items() if rng.random() < 0.5}
        return path, {**fields, "question": question, **({"tokens": ["a"]} if rng.random() < 0.3 else {})}
    fields |= {name: rng.choice(values) for name, values in NUMBERS.items() if rng.random() < 0.25}
    fields |= {name: value for name, value in NEUTRAL.items() if rng.random() < 0.1}
    if fields.get("stream") and rng.random() < 0.5:
        fields["stream_options"] = {"include_usage": True}
    if rng.random() < 0.2:
        fields["stop"] = rng.choice(["a", ["a", " "], "the"])
    if path == CHAT:
        fields |= {"logprobs": True, "top_logprobs": rng.choice([0, 3, 13, 20, 50])} if rng.random() < 0.3 else {}
        content: Any = question if rng.random() < 0.7 else [{"type": "text", "text": question}] * 2
        return path, {**fields, "messages": [{"role": "user", "content": content}] * rng.randint(1, 3)}
    fields |= {"logprobs": rng.choice([0, 3, 13, 20, 50])} if rng.random() < 0.3 else {}
    prompts = [question, [question, "b"], [1, 2, 3], [[1], [2, 3]]]
    return path, {**fields, "prompt": rng.choice(prompts)}


def with_raw(fields: Fields, name: str, value: str) -> bytes:
    """The fields, then one whose value is given as JSON."""
    others = json.dumps({key: one for key, one in fields.items() if key != name or len(value) < 100})
    return f"{others[:-1]}{', ' if len(others) > 2 else ''}{json.dumps(name)}: {value}}}".encode()
