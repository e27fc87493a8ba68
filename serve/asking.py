"""What is asked of a model, whoever asks: HTTP requests, an app, a script. Checked against limits and model here."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coconut_ds.errors import CoconutError
from coconut_ds.generation.prompter import Prompter, Writing
from coconut_ds.generation.requests import Request, Sampling
from coconut_ds.reasoner import Reasoner
from serve.errors import RequestError
from serve.limits import Limits

DEFAULT_NEW_TOKENS = 128
Prompt = str | tuple[int, ...]
"""Text of a question, or its token ids as they are."""


@dataclass(frozen=True)
class Ask:
    """Continuations to make, of one or several questions."""

    model: str
    prompts: tuple[Prompt, ...]
    samples: int = 1
    """Continuations of each question."""
    n_thoughts: int | None = None
    """None: the checkpoint's number."""
    force_text_after: int | None = None
    min_thoughts: int | None = None
    max_thoughts: int | None = None
    max_new_tokens: int | None = None
    """None: ``DEFAULT_NEW_TOKENS``, or as many as there is room for."""
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    """None: another one each time, which matters where something is drawn."""
    stop: tuple[str, ...] = ()
    num_likeliest: int | None = None
    """Tokens shown with each log probability; None: no log probabilities."""
    keep_thoughts: bool = False


def check_numbers(ask: Ask, limits: Limits) -> None:
    """Holds a request against what the server allows, before a model is looked at.

    Raises:
        RequestError: names the field.
    """
    bounds = {
        "prompt": (len(ask.prompts), 1, limits.max_prompts),
        "n": (ask.samples, 1, limits.max_samples),
        "max_tokens": (ask.max_new_tokens, 1, limits.max_new_tokens),
        "min_tokens": (ask.min_new_tokens, 0, ask.max_new_tokens or DEFAULT_NEW_TOKENS),
        "n_thoughts": (ask.n_thoughts, 0, limits.max_thoughts),
        "force_text_after": (ask.force_text_after, 0, limits.max_thoughts),
        "min_thoughts": (ask.min_thoughts, 0, limits.max_thoughts),
        "max_thoughts": (ask.max_thoughts, 0, limits.max_thoughts),
        "logprobs": (ask.num_likeliest, 0, limits.max_top_k),
        "stop": (len(ask.stop), 0, limits.max_stop),
    }
    for name, (value, least, most) in bounds.items():
        if value is not None and not least <= value <= most:
            what = f"has {value} entries" if name in ("prompt", "stop") else f"is {value}"
            raise RequestError(f"{name}: {what}; expected {least} to {most}", name)
    if len(ask.prompts) * ask.samples > limits.max_completions:
        raise RequestError(
            f"n: {len(ask.prompts)} prompts and n={ask.samples} make {len(ask.prompts) * ask.samples} completions; "
            f"expected at most {limits.max_completions}",
            "n",
        )
    for text in ask.stop:
        if not 0 < len(text) <= limits.max_stop_characters:
            raise RequestError(f"stop: expected 1 to {limits.max_stop_characters} characters in each", "stop")
    # A token has at least a byte, and few have more than 32.
    most = 32 * limits.max_prompt_tokens
    if any(isinstance(prompt, str) and len(prompt) > most for prompt in ask.prompts):
        raise RequestError(f"prompt: expected at most {limits.max_prompt_tokens} tokens", "prompt")


def requests_of(ask: Ask, reasoner: Reasoner, capacity: int, limits: Limits) -> list[Request]:
    """The engine's requests, the samples of each prompt one after the other.

    Args:
        ask: checked by ``check_numbers``.
        reasoner: the model.
        capacity: positions of a slot.
        limits: see there.

    Raises:
        RequestError: the model cannot do it.
    """
    prompter = reasoner.prompter
    try:
        thoughts = reasoner.thoughts(ask.n_thoughts, ask.force_text_after, ask.min_thoughts, ask.max_thoughts)
        seed = secrets.randbits(32) if ask.seed is None else ask.seed
        requests: list[Request] = []
        for index, ids in enumerate(_ids(ask.prompts, prompter, limits)):
            # As in ``Reasoner.generate``: draws differ from question to question.
            sampling = Sampling(ask.temperature, ask.top_k, ask.top_p, seed, sample=index * ask.samples)
            request = prompter.request(ids, thoughts, _writing(ask, sampling))
            requests += _in_room(request, ask, capacity).samples(ask.samples)
    except RequestError:
        raise
    except CoconutError as error:
        name = str(error).partition("=")[0].partition(":")[0]
        raise RequestError(str(error), name if name.replace("_", "").isalpha() and name.islower() else None) from error
    return requests


def _writing(ask: Ask, sampling: Sampling) -> Writing:
    return Writing(
        ask.max_new_tokens or DEFAULT_NEW_TOKENS,
        ask.min_new_tokens,
        sampling,
        ask.stop,
        ask.keep_thoughts,
        log_probabilities=ask.num_likeliest is not None,
        num_likeliest=ask.num_likeliest or 0,
    )


def _ids(prompts: Sequence[Prompt], prompter: Prompter, limits: Limits) -> list[list[int]]:
    """Token ids of each question."""
    known = len(prompter.tokenizer)
    found = []
    for prompt in prompts:
        ids = prompter.encode([prompt])[0] if isinstance(prompt, str) else list(prompt)
        if not isinstance(prompt, str):
            for token in ids:
                if not 0 <= token < known or token in prompter.markers.all():
                    raise RequestError(f"prompt: found token {token}; expected 0 to {known - 1}, no marker", "prompt")
        if not 0 < len(ids) <= limits.max_prompt_tokens:
            raise RequestError(f"prompt: has {len(ids)} tokens; expected 1 to {limits.max_prompt_tokens}", "prompt")
        found.append(ids)
    return found


def _in_room(request: Request, ask: Ask, capacity: int) -> Request:
    """The request, if it fits into a slot; with fewer new tokens where no number was asked for."""
    room = capacity - (request.num_positions - request.num_new)
    if ask.max_new_tokens is None and room >= max(1, ask.min_new_tokens):
        return replace(request, max_new_tokens=min(request.max_new_tokens, room))
    if request.num_new > room:
        name = "prompt" if room < 1 else "max_tokens"
        raise RequestError(
            f"{name}: question, thoughts and markers take {capacity - room} positions, and {request.num_new} new "
            f"tokens may follow; there is room for {capacity} in all",
            name,
        )
    return request
