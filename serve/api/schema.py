"""Bodies of requests: OpenAI's fields, and those that only models which think have. Unknown fields are refused.

Types are strict: ``"8"`` is no number. What depends on limits and model is checked by ``serve.asking``.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve.asking import Ask, Prompt
from serve.errors import RequestError

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _whole(text: str) -> str:
    """Refuses half characters (``"\\ud800"``), which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character at {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Body(BaseModel):
    """Base: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """``stream_options``."""

    include_usage: bool = False
    """Whether a last chunk without choices tells the usage."""


class Generation(Body):
    """What both kinds of completion share. ``null`` stands for the default."""

    model: Text
    n: Count | None = Field(None, description="Continuations of each prompt; default 1")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0, the default, is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Text | list[Text] | None = None
    max_tokens: Count | None = Field(None, description="Default 128, or as many as there is room for")
    min_tokens: Count | None = Field(None, description="No end before so many tokens")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Not looked at")
    n_thoughts: Count | None = Field(None, description="Thoughts before the text; default: the checkpoint's number")
    force_text_after: Count | None = Field(None, description="At most so many thoughts")
    min_thoughts: Count | None = Field(None, description="Lets the model end thinking by itself, not before so many")
    max_thoughts: Count | None = Field(None, description="As min_thoughts: the most there can be")
    return_thoughts: bool | None = Field(None, description="Whether choices hold their thoughts, decoded")
    thought_top_k: Annotated[int, Field(ge=1, le=50)] | None = Field(None, description="Tokens a thought; default 5")

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def top_k_of_thoughts(self) -> int:
        """Tokens shown for each thought; 0: thoughts are not wanted."""
        return (self.thought_top_k or 5) if self.return_thoughts else 0

    def ask(self, prompts: tuple[Prompt, ...], num_likeliest: int | None, max_tokens: int | None) -> Ask:
        """What is asked of the service.

        Raises:
            RequestError: fields contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options: only with stream=true", "stream_options")
        if self.thought_top_k is not None and not self.return_thoughts:
            raise RequestError("thought_top_k: only with return_thoughts=true", "thought_top_k")
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
    """``POST /v1/completions``."""

    prompt: Text | list[Text] | list[int] | list[list[int]] = Field(
        description="A question or several, as text or as token ids"
    )
    logprobs: Count | None = Field(None, description="Log probabilities, and so many of the likeliest tokens with each")

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
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Generation):
    """``POST /v1/chat/completions``. Checkpoints trained here never saw roles: the messages' contents, joined by
    newlines, are the question."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: Count | None = Field(None, description="Another name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: Count | None = None

    def to_ask(self) -> Ask:
        """See ``Generation.ask``."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("max_tokens: is another name of max_completion_tokens; give one", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs: only with logprobs=true", "top_logprobs")
        question = "\n".join(message.text for message in self.messages)
        likeliest = (self.top_logprobs or 0) if self.logprobs else None
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.ask((question,), likeliest, most)


class ThoughtsRequest(Body):
    """``POST /v1/thoughts``."""

    model: Text
    question: Text
    n_thoughts: Count | None = None
    force_text_after: Count | None = None
    max_tokens: Count | None = None
    top_k: Annotated[int, Field(ge=1, le=50)] = 5
    layers: bool = False
    """Whether each thought is decoded at each layer too."""
    tokens: Annotated[list[Text], Field(max_length=16)] = []
    """Texts of one token each, whose rank and log probability are wanted."""

    def to_ask(self) -> Ask:
        """The continuation behind the trace."""
        return Ask(
            self.model,
            (self.question,),
            n_thoughts=self.n_thoughts,
            force_text_after=self.force_text_after,
            max_new_tokens=self.max_tokens,
            keep_thoughts=True,
        )
