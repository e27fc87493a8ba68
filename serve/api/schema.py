"""Bodies of requests: OpenAI's fields, and further fields about thoughts. Unknown fields are refused.

Types are strict: ``"8"`` is not accepted as a number, but 8.0 is accepted as an integer. Fields of OpenAI's API that
have no effect are in ``serve.api.neutral``. ``serve.requests.asking`` checks what depends on limits and on the model.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serve.api import neutral
from serve.api.fields import (
    Body,
    Count,
    Ids,
    Seed,
    Text,
    Texts,
    ThoughtDropout,
    ThoughtNoise,
    ThoughtSigma,
    Whole,
    noise_of,
)
from serve.errors import RequestError
from serve.requests.asking import Ask, Prompt

TOP_K = 5
"""Default number of most likely tokens returned for each thought."""


class StreamOptions(Body):
    """``stream_options``; without ``stream`` they have no effect."""

    neutral_fields = neutral.STREAM_OPTIONS
    include_usage: bool | None = Field(
        None, description="Whether the stream ends with a chunk that has no choices and reports the usage"
    )


class Generation(Body):
    """The fields that both kinds of completion share. ``null`` means the default."""

    neutral_fields = neutral.REQUEST
    model: Text
    n: Count | None = Field(None, description="Continuations per prompt; default 1")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Sampling temperature; default 0, which is greedy decoding"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=2**31 - 1)] | None = Field(
        None, description="Samples only from this many of the most likely tokens; default, -1 and 0: from all tokens"
    )
    seed: Seed | None = None
    stop: Text | Texts | None = None
    max_tokens: Count | None = Field(
        None, description="Maximum number of generated tokens; default 128, or fewer if there is no room for 128"
    )
    min_tokens: Count | None = Field(None, description="Minimum number of generated tokens; default 0")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n_thoughts: Count | None = Field(
        None, description="Thoughts (or pauses) before the text; default: the checkpoint's number"
    )
    force_text_after: Count | None = Field(
        None, description="Ends thinking after at most this many thoughts, so that the text begins early"
    )
    min_thoughts: Count | None = Field(
        None, description="Lets the model end thinking by itself, but not before this many thoughts"
    )
    max_thoughts: Count | None = Field(
        None, description="Lets the model end thinking by itself, after at most this many thoughts"
    )
    thought_noise: ThoughtNoise = None
    thought_sigma: ThoughtSigma = None
    thought_dropout: ThoughtDropout = None
    return_thoughts: bool | None = Field(None, description="Whether choices include their decoded thoughts")
    thought_top_k: Annotated[Whole, Field(ge=1, le=50)] | None = Field(
        None, description=f"Number of most likely tokens returned for each thought; default {TOP_K}"
    )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that reports the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def top_k_of_thoughts(self) -> int:
        """Number of most likely tokens returned for each thought; 0: no thoughts are returned."""
        return (self.thought_top_k or TOP_K) if self.return_thoughts else 0

    def ask(self, prompts: tuple[Prompt, ...], num_likeliest: int | None, max_tokens: int | None) -> Ask:
        """The request to the service.

        Raises:
            RequestError: fields contradict each other.
        """
        if self.thought_top_k is not None and not self.return_thoughts:
            raise RequestError(
                "thought_top_k: is only allowed with return_thoughts=true; set return_thoughts=true or omit "
                "thought_top_k",
                "thought_top_k",
            )
        return Ask(
            self.model,
            prompts,
            samples=1 if self.n is None else self.n,
            n_thoughts=self.n_thoughts,
            force_text_after=self.force_text_after,
            min_thoughts=self.min_thoughts,
            max_thoughts=self.max_thoughts,
            max_new_tokens=max_tokens,
            min_new_tokens=self.min_tokens or 0,
            temperature=self.temperature or 0.0,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            noise=noise_of(self.thought_noise, self.thought_sigma, self.thought_dropout),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            num_likeliest=num_likeliest,
            keep_thoughts=bool(self.return_thoughts),
            num_decoded=self.top_k_of_thoughts,
        )


class CompletionRequest(Generation):
    """Body of ``POST /v1/completions``."""

    prompt: Text | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)] = Field(
        description="One question or several, as text or as token ids"
    )
    logprobs: Count | None = Field(
        None, description="Returns log probabilities of the tokens, each with this many of the most likely tokens"
    )

    def to_ask(self) -> Ask:
        """See ``Generation.ask``."""
        return self.ask(self._prompts(), self.logprobs, self.max_tokens)

    def _prompts(self) -> tuple[Prompt, ...]:
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if self.prompt and isinstance(self.prompt[0], int):
            return (tuple(one for one in self.prompt if isinstance(one, int)),)
        return tuple(one if isinstance(one, str) else tuple(one) for one in self.prompt if not isinstance(one, int))


def _no_tool(role: Any) -> Any:
    """Refuses the roles of tools with the reason."""
    if role in ("tool", "function"):
        raise ValueError(f"{role!r} is not supported: the server cannot call tools; omit this message")
    return role


def _text_only(kind: Any) -> Any:
    """Refuses parts with other content than text with the reason."""
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"{kind[:60]!r} is not supported: the server reads only text; send parts of type 'text'")
    return kind


class TextPart(Body):
    """One text part of a message."""

    neutral_fields = neutral.PART
    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: Text


class Message(Body):
    """One message of a chat."""

    neutral_fields = neutral.MESSAGE
    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_no_tool)]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Generation):
    """Body of ``POST /v1/chat/completions``. Checkpoints of this project are not trained with roles, so the question is
    the contents of all messages, joined by newlines. To a chat template of the checkpoint it is one message."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256, fail_fast=True)]
    max_completion_tokens: Count | None = Field(None, description="Alias of max_tokens")
    logprobs: bool | None = None
    top_logprobs: Count | None = None

    def to_ask(self) -> Ask:
        """See ``Generation.ask``."""
        if None not in (self.max_tokens, most := self.max_completion_tokens) and self.max_tokens != most:
            raise RequestError(
                f"max_tokens: is {self.max_tokens}, but its alias max_completion_tokens is {most}; send only one",
                "max_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                "top_logprobs: is only allowed with logprobs=true; set logprobs=true or omit top_logprobs",
                "top_logprobs",
            )
        question = "\n".join(message.text for message in self.messages)
        likeliest = (self.top_logprobs or 0) if self.logprobs else None
        if self.max_tokens is not None or most is None:
            return self.ask((question,), likeliest, self.max_tokens)
        return replace(self.ask((question,), likeliest, most), length_field="max_completion_tokens")


class ThoughtsRequest(Body):
    """Body of ``POST /v1/thoughts``."""

    model: Text
    question: Text
    n_thoughts: Count | None = None
    force_text_after: Count | None = None
    max_tokens: Count | None = None
    thought_noise: ThoughtNoise = None
    thought_sigma: ThoughtSigma = None
    thought_dropout: ThoughtDropout = None
    seed: Seed | None = Field(None, description="Seed of thought_noise; default: a random one")
    top_k: Annotated[Whole, Field(ge=1, le=50)] | None = Field(
        None, description=f"Number of most likely tokens reported for each thought; default {TOP_K}"
    )
    layers: bool | None = Field(
        None, description="Whether the response also has each thought decoded at each layer; default false"
    )
    tokens: Annotated[list[Annotated[Text, Field(max_length=256)]], Field(max_length=16, fail_fast=True)] | None = (
        Field(None, description="Texts of one token each, whose rank and log probability are reported for each thought")
    )

    def to_ask(self) -> Ask:
        """The request for the continuation that is traced."""
        return Ask(
            self.model,
            (self.question,),
            n_thoughts=self.n_thoughts,
            force_text_after=self.force_text_after,
            max_new_tokens=self.max_tokens,
            noise=noise_of(self.thought_noise, self.thought_sigma, self.thought_dropout),
            seed=self.seed,
            keep_thoughts=True,
            num_decoded=self.top_k or TOP_K,
            all_layers=bool(self.layers),
        )
