"""Fields of OpenAI's API and of other servers that are accepted only with values that do not change the answer.

Clients send many fields whether or not their users have set them. The tables name the values of each field that change
nothing here; ``null`` is one of them for every field. Other values are refused with the reason, because without an
effect they would mislead the user. Fields that are in no table are unknown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError, ValidationError

NUM_SHOWN = 60
"""Characters of a refused value that are repeated in the error message."""


@dataclass(frozen=True)
class Neutral:
    """The values of a field that do not change the answer, besides ``null``."""

    values: tuple[Any, ...] | None
    """JSON values; None: all values, since the server ignores the field."""
    reason: str = ""
    """Why other values are refused, and which field to use instead if there is one."""
    same_as: str | None = None
    """Another field of the request, whose value is neutral too."""

    def accepts(self, value: Any, request: Mapping[str, Any]) -> bool:
        """Whether a value of this field changes nothing. ``request``: all fields of the request."""
        if value is None or self.values is None:
            return True
        if self.same_as is not None and _equal(value, request.get(self.same_as)):
            return True
        return any(_equal(value, one) for one in self.values)

    @property
    def expected(self) -> str:
        """The neutral values, for people."""
        same = [] if self.same_as is None else [f"the value of {self.same_as}"]
        return " or ".join([*map(json.dumps, self.values or ()), *same, "null"])


IGNORED = Neutral(None)
_NO_PENALTIES = "the server has no penalties"
_NO_BEAMS = "the server has no beam search"
_NO_TOOLS = "the server cannot call tools, for which its checkpoints are not trained"
_ONLY_TEXT = "the server reads and writes only text"
_TEMPLATES = "a question is encoded as in training, with the checkpoint's own chat template if it was trained with one"

REQUEST: Mapping[str, Neutral] = {
    # How tokens are chosen
    "frequency_penalty": Neutral((0,), _NO_PENALTIES),
    "presence_penalty": Neutral((0,), _NO_PENALTIES),
    "repetition_penalty": Neutral((1,), _NO_PENALTIES),
    "logit_bias": Neutral(({},), "the server does not change the probabilities of single tokens"),
    "min_p": Neutral((0,), "the server does not sample by min_p; use top_p or top_k"),
    "bad_words": Neutral(([],), "the server does not exclude words"),
    "best_of": Neutral((1,), "the server returns all continuations that it generates; use n", same_as="n"),
    "use_beam_search": Neutral((False,), _NO_BEAMS),
    "length_penalty": Neutral((1,), _NO_BEAMS),
    # Where the text ends
    "stop_token_ids": Neutral(([],), "a text ends only at the model's own end tokens and at strings; use stop"),
    "ignore_eos": Neutral((False,), "a text ends at the end-of-sequence token; use min_tokens for a longer text"),
    "include_stop_str_in_output": Neutral((False,), "the text ends before the stop string"),
    # What the text contains
    "echo": Neutral((False,), "the text does not repeat the prompt"),
    "suffix": Neutral(("",), "the server does not insert text before a suffix"),
    "skip_special_tokens": Neutral((True,), "the text contains no special tokens"),
    "spaces_between_special_tokens": IGNORED,
    "response_format": Neutral(({"type": "text"},), "the server does not constrain the text to a format"),
    "modalities": Neutral((["text"],), _ONLY_TEXT),
    "audio": Neutral((), _ONLY_TEXT),
    "verbosity": Neutral(("medium",), "the server cannot change how long its checkpoints write; use max_tokens"),
    "reasoning_effort": Neutral((), "the server thinks a number of thoughts; use n_thoughts"),
    "web_search_options": Neutral((), "the server does not search the web"),
    "moderation": Neutral((), "the server does not moderate"),
    # Tools
    "tools": Neutral(([],), _NO_TOOLS),
    "tool_choice": Neutral(("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": Neutral((True, False), _NO_TOOLS),
    "functions": Neutral(([],), _NO_TOOLS),
    "function_call": Neutral(("none", "auto"), _NO_TOOLS),
    # How a chat becomes a prompt
    "chat_template": Neutral((), _TEMPLATES),
    "chat_template_kwargs": Neutral(({},), _TEMPLATES),
    "add_generation_prompt": Neutral((True,), _TEMPLATES),
    "continue_final_message": Neutral((False,), _TEMPLATES),
    # Nothing that concerns the answer
    "metadata": IGNORED,
    "prediction": IGNORED,
    "prompt_cache_key": IGNORED,
    "prompt_cache_options": IGNORED,
    "prompt_cache_retention": IGNORED,
    "safety_identifier": IGNORED,
    "service_tier": IGNORED,
    "store": IGNORED,
    "user": IGNORED,
}
"""Fields of a request for a completion."""

STREAM_OPTIONS: Mapping[str, Neutral] = {
    "include_obfuscation": Neutral((False,), "the server does not pad events"),
    "continuous_usage_stats": Neutral((False,), "only the last chunk reports the usage; use include_usage"),
}
"""Fields of ``stream_options``."""

MESSAGE: Mapping[str, Neutral] = {
    "refusal": Neutral(("",), "the question is made of the contents alone; send this text as content"),
    "reasoning_content": Neutral(("",), "the question is made of the contents alone; send this text as content"),
    "tool_calls": Neutral(([],), _NO_TOOLS),
    "tool_call_id": Neutral((), _NO_TOOLS),
    "function_call": Neutral((), _NO_TOOLS),
    "audio": Neutral((), _ONLY_TEXT),
    "annotations": IGNORED,
    "name": IGNORED,
    "provider_specific_fields": IGNORED,
}
"""Fields of a message. Clients send a message of an answer back with all fields that it had."""

PART: Mapping[str, Neutral] = {"annotations": IGNORED, "cache_control": IGNORED, "prompt_cache_breakpoint": IGNORED}
"""Fields of a part of a message's content."""


def without_neutral(values: Mapping[str, Any], table: Mapping[str, Neutral], title: str) -> dict[str, Any]:
    """The fields that are in no table.

    Args:
        values: the fields of an object of a request.
        table: the neutral fields of this kind of object.
        title: name of this kind of object.

    Raises:
        ValidationError: a field of the table has a value that is not neutral.
    """
    for name, value in values.items():
        if name in table and not table[name].accepts(value, values):
            # These are passed as context, because pydantic would take braces in the message for names in the context.
            context = {"shown": _shown(value), "expected": table[name].expected, "reason": table[name].reason}
            error = PydanticCustomError("not_neutral", "is {shown}; expected {expected}: {reason}", context)
            raise ValidationError.from_exception_data(title, [{"type": error, "loc": (name,), "input": value}])
    return {name: value for name, value in values.items() if name not in table}


def properties_of(table: Mapping[str, Neutral]) -> dict[str, Any]:
    """The neutral fields as properties of a JSON schema."""
    properties: dict[str, Any] = {}
    for name, neutral in table.items():
        if neutral.values is None:
            properties[name] = {"description": "Ignored"}
            continue
        described = f"Accepted only as {neutral.expected}, which changes nothing: {neutral.reason}".rstrip(": ")
        properties[name] = {"description": described}
        if neutral.same_as is None:
            properties[name]["enum"] = [*neutral.values, None]
    return properties


def _shown(value: Any) -> str:
    """The beginning of a value as JSON. It is encoded only as far as it is shown, since it may be large or deep."""
    shown = ""
    for piece in json.JSONEncoder().iterencode(value if not isinstance(value, str) else value[: NUM_SHOWN + 1]):
        shown += piece[: NUM_SHOWN + 1]
        if len(shown) > NUM_SHOWN:
            return f"{shown[:NUM_SHOWN]}…"
    return shown


def _equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal. Unlike in Python, ``true`` and 1 are not."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
