"""What a request asks for: how many thoughts; and what it must not ask for.

Everything here raises vLLM's own error of a wrong request, which becomes status 400.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMValidationError

from coconut_vllm.card import Card
from coconut_vllm.thoughts import Plan

NUMBERS = ("n_thoughts", "min_thoughts", "max_thoughts", "force_text_after")
FOREIGN = ("session_id",)
"""Other keys that vLLM itself allows in ``vllm_xargs``."""


@dataclass(frozen=True)
class Asked:
    """The numbers of a request; None where it does not say."""

    n_thoughts: int | None = None
    min_thoughts: int | None = None
    max_thoughts: int | None = None
    force_text_after: int | None = None

    @property
    def may_end(self) -> bool:
        """Whether the model decides when to stop thinking."""
        return self.min_thoughts is not None or self.max_thoughts is not None


def refused(message: str, parameter: str | None = None) -> VLLMValidationError:
    """The error of a wrong request."""
    return VLLMValidationError(message, parameter=parameter)


def asked(extra: Mapping[str, Any] | None) -> Asked:
    """Reads ``extra_args``, which is ``vllm_xargs`` in requests over HTTP.

    Raises:
        VLLMValidationError: a key is unknown, or a value is not a number of thoughts.
    """
    given = dict(extra or {})
    if unknown := sorted(set(given) - {*NUMBERS, *FOREIGN}):
        raise refused(f"{', '.join(unknown)}: unknown; expected some of {', '.join(NUMBERS)}", "vllm_xargs")
    numbers = {}
    for name in NUMBERS:
        value = given.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (type(value) is not int or value < 0):
            raise refused(f"{name} is {given[name]!r}; expected an integer of 0 or more", "vllm_xargs")
        numbers[name] = value
    return Asked(**numbers)


@dataclass(frozen=True)
class Layout:
    """How a request's prompt ends, and how it goes on."""

    after_question: tuple[int, ...]
    """Tokens that follow the question."""
    plan: Plan | None
    """How it thinks; None: not at all."""

    @property
    def most_extra(self) -> int:
        """Most tokens that are written besides the text: thoughts and ``<|end-latent|>``."""
        return 0 if self.plan is None else self.plan.count + 1

    @property
    def is_fixed(self) -> bool:
        """Whether exactly ``most_extra`` such tokens are written, all before the text: the model decides nothing."""
        return self.plan is None or (self.plan.in_prompt and self.plan.least == self.plan.count)


def layout(card: Card, numbers: Asked, most: int) -> Layout:
    """Decides how a request thinks.

    Args:
        card: how the model thinks.
        numbers: what the request asks for.
        most: largest number of thoughts that the engine has room for.

    Raises:
        VLLMValidationError: the model cannot do that, or the numbers contradict each other.
    """
    method = card.method
    count = card.number if numbers.n_thoughts is None else numbers.n_thoughts
    if numbers.max_thoughts is not None:
        count = numbers.max_thoughts
    if numbers.force_text_after is not None:
        count = min(count, numbers.force_text_after)
    if count and not (method.thinks or method.pauses):
        raise refused(f"n_thoughts={count}: method={card.name} does not think; leave it out", "n_thoughts")
    if numbers.may_end and not method.thinks:
        raise refused(
            f"min_thoughts, max_thoughts: method={card.name} does not decide when to stop; leave both out",
            "min_thoughts",
        )
    if count > most:
        raise refused(
            f"n_thoughts={count}: this engine has room for {most}; ask for at most {most}, or start it with "
            f'--additional-config \'{{"coconut": {{"max_thoughts": {count}}}}}\'',
            "n_thoughts",
        )
    least = (numbers.min_thoughts or 0) if numbers.may_end else count
    if least > count:
        raise refused(f"min_thoughts={least}: expected at most {count}, the largest number of thoughts", "min_thoughts")
    markers = card.markers
    if method.pauses:
        assert markers.pause is not None
        pauses = (markers.pause,) * count
        return Layout((markers.start, *pauses, markers.end) if method.marked else pauses, None)
    if not method.thinks:
        return Layout((), None)
    # A model that decides when to think is given all its thoughts, or as ``min_thoughts`` says.
    return Layout(() if method.decides else (markers.start,), Plan(count, least, not method.decides))


def refuse_parameters(params: Any, markers: Sequence[int]) -> None:
    """Refuses sampling parameters with which thoughts would be wrong.

    Raises:
        VLLMValidationError: names the parameter, and what to do.
    """
    wrong = {
        "structured_outputs": (params.structured_outputs is not None, "a grammar does not know of thoughts"),
        "thinking_token_budget": (
            getattr(params, "thinking_token_budget", None) is not None,
            "thoughts are set by n_thoughts in vllm_xargs",
        ),
        "trace_decode_token_ids": (
            bool(getattr(params, "trace_decode_token_ids", None)),
            "a trace would overwrite thoughts",
        ),
        "repetition_detection": (
            getattr(params, "repetition_detection", None) is not None,
            "thoughts are repeated tokens to it",
        ),
    }
    for name, (is_given, reason) in wrong.items():
        if is_given:
            raise refused(f"{name}: not supported by a model that thinks, because {reason}; leave it out", name)
    named = {
        "stop_token_ids": params.stop_token_ids or (),
        "logit_bias": params.logit_bias or (),
        "allowed_token_ids": params.allowed_token_ids or (),
    }
    for name, ids in named.items():
        if found := sorted(set(map(int, ids)) & set(markers)):
            raise refused(f"{name}: holds markers of thoughts ({found}), which are written by the engine alone", name)
