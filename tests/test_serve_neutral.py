"""Fields that real clients send without effect: neutral values give the same request, all others are refused."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.api import neutral
from serve.api.schema import ChatRequest, CompletionRequest, Message, StreamOptions, TextPart, ThoughtsRequest
from serve.errors import RequestError
from serve.limits import Limits
from serve.requests.asking import Ask, check_numbers

COMPLETION = {"model": "m", "prompt": "hello", "max_tokens": 9}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
KINDS = {"completion": (CompletionRequest, COMPLETION), "chat": (ChatRequest, CHAT)}
PLAIN = Ask("m", ("hello",), max_new_tokens=9)

# As clients send them: openai-python, LangChain, LiteLLM, and vLLM's own.
SENT = [
    {"frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": None, "n": 1, "seed": None, "top_p": 1},
    {"best_of": 1, "echo": False, "suffix": None},
    {"tools": None, "tool_choice": None},
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    {"response_format": {"type": "text"}, "modalities": ["text"]},
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "stop_token_ids": []},
    {"top_k": 0, "stop": []},
    {"max_tokens": 9.0, "n": 1.0, "min_tokens": 0.0},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": None, "include_obfuscation": False}, "stream": False},
    {"logit_bias": {}, "service_tier": "auto", "store": False, "metadata": {"run": "1"}, "user": "u"},
    {
        "store": True,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prediction": {"type": "content", "content": ""},
    },
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 0.5]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def ask_of(kind: str, **more) -> Ask:
    model, body = KINDS[kind]
    return model.model_validate({**body, **more}).to_ask()


def refusal_of(model, body) -> tuple[tuple, str]:
    """Field and message of the first error."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    error = caught.value.errors()[0]
    return error["loc"], error["msg"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", SENT, ids=lambda fields: " ".join(fields))
def test_what_clients_send_without_effect_changes_nothing(kind, fields):
    assert ask_of(kind, **fields) == PLAIN


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(sorted(neutral.REQUEST)), value=JSON)
def test_a_value_changes_nothing_or_is_refused_with_the_reason(kind, name, value):
    """There is no third case, in which a field is accepted and changes the answer or is silently without its effect."""
    entry = neutral.REQUEST[name]
    # JSON text distinguishes true from 1, which Python does not; 0.0 and 0 are the same number.
    texts = {json.dumps(one) for one in [None, *(entry.values or ())]}
    number = isinstance(value, float) and value.is_integer()
    if entry.values is None or json.dumps(int(value) if number else value) in texts:
        assert ask_of(kind, **{name: value}) == PLAIN
    else:
        model, body = KINDS[kind]
        where, message = refusal_of(model, {**body, name: value})
        assert where == (name,)
        assert message.endswith(entry.reason)
        assert len(entry.reason) > 10


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "cannot call tools"),
        ({"tool_choice": "required"}, "tool_choice", "cannot call tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not constrain"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "is 0.5; expected 0 or null: the server has no penalties"),
        ({"best_of": 3, "n": 2}, "best_of", "expected 1 or the value of n or null"),
        ({"best_of": True}, "best_of", "is true"),
        ({"echo": 0}, "echo", "is 0; expected false or null"),
        ({"echo": True}, "echo", "does not repeat the prompt"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "probabilities of single tokens"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "n_thoughts"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "does not pad"),
        ({"metadata": {}, "suffix": "{x} {" * 100}, "suffix", "…; expected"),
    ],
)
def test_what_would_change_the_answer_is_refused(fields, param, says):
    for model, body in KINDS.values():
        where, message = refusal_of(model, {**body, **fields})
        assert where[0] == param
        assert says in message


def test_best_of_may_be_n():
    assert ask_of("completion", best_of=3, n=3) == ask_of("completion", n=3)


@given(name=st.text(max_size=12))
def test_unknown_names_stay_refused(name):
    for model, body in (*KINDS.values(), (StreamOptions, {}), (ThoughtsRequest, {"model": "m", "question": "q"})):
        assume(name not in model.model_fields and name not in model.neutral_fields)
        where, _ = refusal_of(model, {**body, name: None})
        assert where == (name,)
    user = {"role": "user", "content": "a"}
    for model, body in ((Message, user), (TextPart, {"type": "text", "text": "a"})):
        assume(name not in model.model_fields and name not in model.neutral_fields)
        assert refusal_of(model, {**body, name: None})[0] == (name,)


# --- messages


def test_a_dumped_message_of_an_answer_can_be_sent_back():
    """As ``model_dump`` of openai-python writes it, and with LiteLLM's further field."""
    dumped = {"content": "hi", "role": "assistant", "refusal": None, "annotations": None, "audio": None}
    dumped |= {"function_call": None, "tool_calls": None}
    for message in (dumped, {**dumped, "provider_specific_fields": {"refusal": None}}, {**dumped, "tool_calls": []}):
        assert ask_of("chat", messages=[*CHAT["messages"], message]).prompts == ("hello\nhi",)


def test_a_list_of_text_parts_is_their_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    assert ask_of("chat", messages=[{"role": "user", "content": parts}]).prompts == ("ab",)


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, "tool_call_id", "cannot call tools"),
        ({"role": "tool", "content": "4"}, "role", "'tool' is not supported: the server cannot call tools"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}, "tool_calls", "cannot call tools"),
        ({"role": "assistant", "content": "", "refusal": "I cannot"}, "refusal", "contents alone"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type", "reads only text"),
    ],
)
def test_messages_that_are_more_than_text_are_refused(message, field, says):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({**CHAT, "messages": [message]})
    (error,) = [one for one in caught.value.errors() if one["loc"][-1] == field]
    assert says in error["msg"]


# --- numbers and aliases


@pytest.mark.parametrize("name", ["n", "top_k", "seed", "max_tokens", "min_tokens", "n_thoughts", "logprobs"])
@given(value=st.integers(1, 50))
def test_an_integer_may_be_written_with_a_point(name, value):
    assert ask_of("completion", **{name: float(value)}) == ask_of("completion", **{name: value})
    for wrong in (value + 0.5, str(value), True, float("inf")):
        assert refusal_of(CompletionRequest, {**COMPLETION, name: wrong})[0][0] == name


def test_token_ids_may_be_written_with_a_point():
    assert ask_of("completion", prompt=[1.0, 2]).prompts == ((1, 2),)
    assert ask_of("completion", prompt=[[1, 2.0], [3]]).prompts == ((1, 2), (3,))
    refusal_of(CompletionRequest, {**COMPLETION, "prompt": [1.5]})


def test_two_names_of_one_limit_must_agree():
    assert ask_of("chat", max_completion_tokens=9) == PLAIN
    with pytest.raises(RequestError, match="is 9, but its alias max_completion_tokens is 8"):
        ask_of("chat", max_completion_tokens=8)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_is_reported_under_the_name_that_was_sent(name):
    limits = Limits()
    for values, says in (({}, "expected 1 to"), ({"min_tokens": 10**6}, f"{name} sets this limit")):
        most = 10**6 if not values else 9
        ask = ChatRequest.model_validate({**CHAT, "max_tokens": None, name: most, **values}).to_ask()
        with pytest.raises(RequestError, match=says) as caught:
            check_numbers(ask, limits)
        assert caught.value.param == ("min_tokens" if values else name)


def test_no_log_probabilities_may_be_requested_in_full():
    assert ask_of("chat", logprobs=False, top_logprobs=0) == PLAIN
    with pytest.raises(RequestError, match="top_logprobs"):
        ask_of("chat", top_logprobs=1)


def test_null_is_the_default_of_every_optional_field():
    for kind, (model, body) in KINDS.items():
        names = [name for name, field in model.model_fields.items() if not field.is_required() and name not in body]
        assert ask_of(kind, **dict.fromkeys([*names, *neutral.REQUEST])) == PLAIN
    body = {"model": "m", "question": "hello"}
    empty = {name: None for name in ThoughtsRequest.model_fields if name not in body}
    assert ThoughtsRequest.model_validate({**body, **empty}).to_ask() == ThoughtsRequest.model_validate(body).to_ask()


# --- the description


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest, Message, TextPart, StreamOptions])
def test_the_description_lists_every_neutral_field(model):
    properties = model.model_json_schema()["properties"]
    for name, entry in model.neutral_fields.items():
        assert properties[name]["description"], name
        for value in properties[name].get("enum", ()):
            assert entry.accepts(value, {})
