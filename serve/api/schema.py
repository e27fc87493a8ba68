"""Bodies of requests: OpenAI's fields, and further fields about thoughts. Unknown fields are refused.

Types are strict: ``"8"`` is not accepted as a number. ``serve.asking`` checks what depends on limits and on the model.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve.asking import Ask, Prompt
from serve.errors import RequestError

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _encodable(text: str) -> str:
    """Refuses lone surrogates (``"\\ud800"``), which JSON can contain but UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"contains a lone surrogate at character {error.start}; send valid Unicode text") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Body(BaseModel):
    """Base of all request bodies: refuses unknown fields and does not convert types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """``stream_options``."""

    include_usage: bool = False
    """Whether the stream ends with a chunk that has no choices and reports the usage."""


class Generation(Body):
    """The fields that both kinds of completion share. ``null`` means the default."""

    model: Text
    n: Count | None = Field(None, description="Continuations per prompt; default 1")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Sampling temperature; default 0, which is greedy decoding"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Text | list[Text] | None = None
    max_tokens: Count | None = Field(
        None, description="Maximum number of generated tokens; default 128, or fewer if there is no room for 128"
    )
    min_tokens: Count | None = Field(None, description="Minimum number of generated tokens; default 0")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Ignored")
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
    return_thoughts: bool | None = Field(None, description="Whether choices include their decoded thoughts")
    thought_top_k: Annotated[int, Field(ge=1, le=50)] | None = Field(
        None, description="Number of most likely tokens returned for each thought; default 5"
    )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that reports the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def top_k_of_thoughts(self) -> int:
        """Number of most likely tokens returned for each thought; 0: no thoughts are returned."""
        return (self.thought_top_k or 5) if self.return_thoughts else 0

    def ask(self, prompts: tuple[Prompt, ...], num_likeliest: int | None, max_tokens: int | None) -> Ask:
        """The request to the service.

        Raises:
            RequestError: fields contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options: is only allowed with stream=true; set stream=true or omit stream_options",
                "stream_options",
            )
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
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            num_likeliest=num_likeliest,
            keep_thoughts=bool(self.return_thoughts),
        )


class CompletionRequest(Generation):
    """Body of ``POST /v1/completions``."""

    prompt: Text | list[Text] | list[int] | list[list[int]] = Field(
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


class TextPart(Body):
    """One text part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Generation):
    """Body of ``POST /v1/chat/completions``. Checkpoints of this project are not trained with roles, so the question is
    the contents of all messages, joined by newlines."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: Count | None = Field(None, description="Alias of max_tokens")
    logprobs: bool | None = None
    top_logprobs: Count | None = None

    def to_ask(self) -> Ask:
        """See ``Generation.ask``."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError(
                "max_tokens: is an alias of max_completion_tokens, and both were sent; send only one", "max_tokens"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(
                "top_logprobs: is only allowed with logprobs=true; set logprobs=true or omit top_logprobs",
                "top_logprobs",
            )
        question = "\n".join(message.text for message in self.messages)
        likeliest = (self.top_logprobs or 0) if self.logprobs else None
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.ask((question,), likeliest, most)


class ThoughtsRequest(Body):
    """Body of ``POST /v1/thoughts``."""

    model: Text
    question: Text
    n_thoughts: Count | None = None
    force_text_after: Count | None = None
    max_tokens: Count | None = None
    top_k: Annotated[int, Field(ge=1, le=50)] = 5
    layers: bool = False
    """Whether the response also has each thought decoded at each layer."""
    tokens: Annotated[list[Text], Field(max_length=16)] = []
    """Texts of one token each, whose rank and log probability are reported for each thought."""

    def to_ask(self) -> Ask:
        """The request for the continuation that is traced."""
        return Ask(
            self.model,
            (self.question,),
            n_thoughts=self.n_thoughts,
            force_text_after=self.force_text_after,
            max_new_tokens=self.max_tokens,
            keep_thoughts=True,
        )
