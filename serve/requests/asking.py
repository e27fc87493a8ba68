"""Requests to a model, independent of who makes them (HTTP clients, the app, a script), and their checks."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coconut_ds.errors import CoconutError
from coconut_ds.generation.prompter import Prompter, Writing
from coconut_ds.generation.requests import Request, Sampling
from coconut_ds.model.thought_noise import NO_NOISE, NoiseSettings
from coconut_ds.reasoner import Reasoner
from serve.clients.client import IN_PROCESS, Client
from serve.engine.deadlines import Deadline
from serve.errors import RequestError
from serve.limits import Limits

DEFAULT_NEW_TOKENS = 128
Prompt = str | tuple[int, ...]
"""A question as text, or as token ids that are used unchanged."""


@dataclass(frozen=True)
class Ask:
    """A request for continuations of one or several questions."""

    model: str
    prompts: tuple[Prompt, ...]
    samples: int = 1
    """Continuations per question."""
    n_thoughts: int | None = None
    """Thoughts (or pauses) before the text; None: the checkpoint's number."""
    force_text_after: int | None = None
    """End thinking after at most this many thoughts; None: no such limit."""
    min_thoughts: int | None = None
    """Let the model end thinking by itself, but not before this many thoughts."""
    max_thoughts: int | None = None
    """Let the model end thinking by itself, after at most this many thoughts."""
    max_new_tokens: int | None = None
    """None: ``DEFAULT_NEW_TOKENS``, or fewer if the slot has no room for them."""
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    """None: a random seed for each request; only matters with ``temperature`` or ``noise``."""
    noise: NoiseSettings = NO_NOISE
    """Noise in the thoughts, drawn by (seed, question, sample, thought)."""
    stop: tuple[str, ...] = ()
    num_likeliest: int | None = None
    """Number of most likely tokens returned with each log probability; None: no log probabilities."""
    keep_thoughts: bool = False
    """Whether completions include the states of their thoughts."""
    num_decoded: int = 0
    """Number of most likely tokens that the answer reports for each thought."""
    all_layers: bool = False
    """Whether it reports them for the states of all layers."""
    length_field: str = "max_tokens"
    """The name under which the caller gave ``max_new_tokens``, for messages."""
    client: Client = IN_PROCESS
    """Who asks."""
    timeout_s: float | None = None
    """Seconds after which the caller no longer wants the answer; None: the server's time limit holds alone."""
    deadline: Deadline | None = None
    """When the whole request must have ended; None: it begins with the next call of the service, see ``begun``."""


def check_numbers(ask: Ask, limits: Limits) -> None:
    """Checks a request against the server's limits. Does not need the model.

    Raises:
        RequestError: a value is out of range; the error names the field.
    """
    most_thoughts = (limits.max_thoughts, "the server's option --max-thoughts")
    most_tokens = ask.max_new_tokens or DEFAULT_NEW_TOKENS
    bounds: dict[str, tuple[int | None, int, int, str | None]] = {
        "prompt": (len(ask.prompts), 1, limits.max_prompts, "the server's option --max-prompts"),
        "n": (ask.samples, 1, limits.max_samples, "the server's option --max-samples"),
        ask.length_field: (ask.max_new_tokens, 1, limits.max_new_tokens, "the server's option --max-new-tokens"),
        "min_tokens": (ask.min_new_tokens, 0, most_tokens, ask.length_field),
        "n_thoughts": (ask.n_thoughts, 0, *most_thoughts),
        "force_text_after": (ask.force_text_after, 0, *most_thoughts),
        "min_thoughts": (ask.min_thoughts, 0, *most_thoughts),
        "max_thoughts": (ask.max_thoughts, 0, *most_thoughts),
        "logprobs": (ask.num_likeliest, 0, limits.max_top_k, None),
        "stop": (len(ask.stop), 0, limits.max_stop, None),
    }
    for name, (value, least, most, limited_by) in bounds.items():
        if value is not None and not least <= value <= most:
            what = f"has {value} entries" if name in ("prompt", "stop") else f"is {value}"
            limit = f"; {limited_by} sets this limit" if limited_by is not None and value > most else ""
            raise RequestError(f"{name}: {what}; expected {least} to {most}{limit}", name)
    if len(ask.prompts) * ask.samples > limits.max_completions:
        raise RequestError(
            f"n: {len(ask.prompts)} prompts with n={ask.samples} are {len(ask.prompts) * ask.samples} completions; "
            f"expected at most {limits.max_completions} per request; the server's option --max-completions sets this "
            "limit",
            "n",
        )
    for text in ask.stop:
        if not 0 < len(text) <= limits.max_stop_characters:
            raise RequestError(
                f"stop: found a string of {len(text)} characters; expected 1 to {limits.max_stop_characters} "
                "characters each",
                "stop",
            )
    # Refuses hopelessly long texts before tokenizing them: few tokens have more than 32 characters.
    most = 32 * limits.max_prompt_tokens
    if any(isinstance(prompt, str) and len(prompt) > most for prompt in ask.prompts):
        raise RequestError(
            f"prompt: found a text of more than {most} characters; expected at most {limits.max_prompt_tokens} tokens; "
            "the server's option --max-prompt-tokens sets this limit",
            "prompt",
        )


def requests_of(ask: Ask, reasoner: Reasoner, capacity: int, limits: Limits) -> list[Request]:
    """Turns an ``Ask`` into requests of the engine: for each prompt, all its samples in a row.

    Args:
        ask: must have passed ``check_numbers``.
        reasoner: the model.
        capacity: positions of a slot.
        limits: limits of the server.

    Raises:
        RequestError: the request does not fit the model; the error names the field.
    """
    prompter = reasoner.prompter
    try:
        thoughts = reasoner.thoughts(ask.n_thoughts, ask.force_text_after, ask.min_thoughts, ask.max_thoughts)
        seed = secrets.randbits(32) if ask.seed is None else ask.seed
        requests: list[Request] = []
        for index, ids in enumerate(_ids(ask.prompts, prompter, limits)):
            # As in ``Reasoner.generate``: each question has its own random draws.
            sampling = Sampling(ask.temperature, ask.top_k, ask.top_p, seed, sample=index * ask.samples)
            request = prompter.request(ids, thoughts, _writing(ask, sampling))
            own = replace(_fitted(request, ask, capacity), owner=ask.client.name)
            requests += own.samples(ask.samples)
        _check_probabilities(requests, ask, reasoner, limits)
    except RequestError:
        raise
    except CoconutError as error:
        # Messages begin with the name of the field: ``top_p=0: …`` or ``prompt: …``.
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
        noise=ask.noise,
    )


def _ids(prompts: Sequence[Prompt], prompter: Prompter, limits: Limits) -> list[list[int]]:
    """Token ids of each question.

    Raises:
        RequestError: a token id is not allowed, or a question is too long or empty.
    """
    known, markers = len(prompter.tokenizer), set(prompter.markers.all())
    found = []
    for prompt in prompts:
        ids = prompter.encode([prompt])[0] if isinstance(prompt, str) else list(prompt)
        if not isinstance(prompt, str):
            for token in ids:
                if not 0 <= token < known or token in markers:
                    raise RequestError(
                        f"prompt: found token id {token}; expected 0 to {known - 1}, and not a thought marker", "prompt"
                    )
        if not 0 < len(ids) <= limits.max_prompt_tokens:
            limit = "; the server's option --max-prompt-tokens sets this limit" if ids else ""
            raise RequestError(
                f"prompt: has {len(ids)} tokens; expected 1 to {limits.max_prompt_tokens}{limit}", "prompt"
            )
        found.append(ids)
    return found


def _check_probabilities(requests: Sequence[Request], ask: Ask, reasoner: Reasoner, limits: Limits) -> None:
    """Refuses a request whose answer would report too many probabilities.

    Raises:
        RequestError: there are more of them than the limit.
    """
    known = len(reasoner.prompter.tokenizer)
    likeliest = None if ask.num_likeliest is None else min(ask.num_likeliest, known)
    tokens = 0 if likeliest is None else sum(one.num_new for one in requests) * (1 + likeliest)
    states = 1 + reasoner.loop.num_layers if ask.all_layers else 1
    thoughts = sum(one.num_thoughts for one in requests) * states * min(ask.num_decoded, known)
    if tokens + thoughts > limits.max_probabilities:
        name, fewer = ("logprobs", "logprobs, max_tokens") if tokens >= thoughts else ("thought_top_k", "thought_top_k")
        raise RequestError(
            f"{name}: the answer could report {tokens} log probabilities of tokens and {thoughts} probabilities of "
            f"thoughts; expected at most {limits.max_probabilities} per request; send a smaller {fewer} or n; the "
            "server's option --max-probabilities sets this limit",
            name,
        )


def _fitted(request: Request, ask: Ask, capacity: int) -> Request:
    """Checks that the request fits into a slot; reduces ``max_new_tokens`` if the caller did not specify it.

    Raises:
        RequestError: the request does not fit.
    """
    room = capacity - (request.num_positions - request.num_new)
    if ask.max_new_tokens is None and room >= max(1, ask.min_new_tokens):
        return replace(request, max_new_tokens=min(request.max_new_tokens, room))
    if request.num_new > room:
        name = "prompt" if room < 1 else ask.length_field
        send = "send a shorter prompt" if room < 1 else f"send a {ask.length_field} of at most {room}"
        raise RequestError(
            f"{name}: question, thoughts and markers take {capacity - room} positions, and up to {request.num_new} new "
            f"tokens follow; there is room for {capacity} positions in total, the smaller of the server's option "
            f"--max-positions and the model's context length; {send}",
            name,
        )
    return request
