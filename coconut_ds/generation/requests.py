"""What is asked of the thinking engine, and what it gives back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.methods.layout import Layout

FinishReason = Literal["eos", "stop", "length", "continuation"]
"""An end of sequence, a stop string, ``max_new_tokens`` or the end of the context, the end of a given continuation."""


EditThought = Callable[[int, Tensor], Tensor]
"""What is fed back in place of thought ``index`` (from 0), whose state is [D]."""


@dataclass(frozen=True)
class Thinking:
    """How a model thinks that begins by itself: once it writes ``start``, thoughts follow, then ``end`` is given."""

    start: int
    end: int
    num_thoughts: int


@dataclass(frozen=True)
class Jacobi:
    """Thoughts all at once, several times (see ``LatentLoop``)."""

    iterations: int
    guess: int
    """Token whose embedding they begin as."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Greedy as it stands.

    Draws depend on (seed, sample, index of the token) alone: not on other requests, nor on when they arrive.
    """

    temperature: float = 0.0
    """0: the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens that together hold this probability; at least one."""
    seed: int = 0
    sample: int = 0
    """Tells several samples of one prompt apart."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise DataError(f"temperature={self.temperature}: expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise DataError(f"top_k={self.top_k}: expected 1 or more, or none")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p={self.top_p}: expected more than 0, at most 1")


@dataclass(frozen=True)
class Request:
    """One continuation to make."""

    prompt: Layout
    """What the model is given: tokens, with at most one run of thoughts among them."""
    max_new_tokens: int
    min_new_tokens: int = 0
    """No end of sequence, and no stop string, before so many tokens."""
    sampling: Sampling = field(default_factory=Sampling)
    suppress: tuple[int, ...] = ()
    """Tokens that are never chosen; the thought markers, which only a prompt may hold."""
    thinking: Thinking | None = None
    """None: all thoughts stand in the prompt."""
    jacobi: Jacobi | None = None
    """None: thoughts come one after the other."""
    min_thoughts: int | None = None
    """Thinking may end after so many thoughts, as soon as ``end_thinking`` is the likeliest token. None: never."""
    end_thinking: int | None = None
    """The token that ends thinking early (``min_thoughts``)."""
    stop: tuple[str, ...] = ()
    """Text that ends the continuation; the engine needs ``decode`` for it. The text stays in the tokens."""
    continuation: tuple[int, ...] | None = None
    """Tokens to score instead of choosing any: each gets its log probability after those before it."""
    log_probabilities: bool = False
    """Whether those of chosen tokens are wanted; those of a continuation always are."""
    num_likeliest: int = 0
    """How many of the likeliest tokens are wanted with each log probability."""
    keep_thoughts: bool = False
    """Whether ``Completion.thoughts`` is wanted."""
    edit_thought: EditThought | None = None
    """Replaces thoughts before they are fed back; later ones follow from what was fed back. Where thoughts come all at
    once it is asked in every pass."""

    def __post_init__(self) -> None:
        if not len(self.prompt) or (self.prompt.num_thoughts and not self.prompt.first_thought):
            raise DataError("prompt: found no token before the first thought; expected at least one")
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens={self.max_new_tokens}: expected 1 or more")
        if self.continuation == ():
            raise DataError("continuation: found no token; expected at least one, or none asked for")
        if self.jacobi is not None and self.min_thoughts is not None:
            raise DataError("min_thoughts, max_thoughts: thinking=jacobi makes all thoughts at once, none ends it")
        if self.min_thoughts is not None and self.end_thinking is None:
            raise DataError(f"min_thoughts={self.min_thoughts}: needs end_thinking, the token that ends thinking")

    @property
    def num_new(self) -> int:
        """Tokens that follow the prompt at most."""
        return self.max_new_tokens if self.continuation is None else len(self.continuation)

    @property
    def num_positions(self) -> int:
        """Positions that prompt, thoughts and new tokens come to at most."""
        own = self.thinking.num_thoughts + 1 if self.thinking else 0
        return len(self.prompt) + own + self.num_new

    def samples(self, count: int) -> Iterator["Request"]:
        """The request ``count`` times, each with draws of its own; its prompt is encoded once."""
        for sample in range(count):
            yield replace(self, sampling=replace(self.sampling, sample=self.sampling.sample + sample))


class Score(NamedTuple):
    """How likely a token was, before temperature and filters, suppressed tokens left out."""

    log_probability: float
    is_greedy: bool
    """Whether it was the likeliest."""
    likeliest: tuple[tuple[int, float], ...]
    """The likeliest tokens with their log probabilities, as many as were wanted."""


class Completion(NamedTuple):
    """What the model wrote, and what it thought. A tuple, since ZeRO's hooks look for tensors in what is returned."""

    tokens: list[int]
    """New tokens, the end of sequence included where it was reached."""
    finish_reason: FinishReason
    scores: list[Score]
    """Of each new token; empty unless log probabilities were wanted."""
    num_thoughts: int
    thoughts: Tensor | None
    """[thoughts, D] the hidden states that were fed back, on the CPU in fp32; None unless asked for."""
    num_shared: int
    """Positions of the prompt that were not encoded, since another request had the same beginning."""
    seconds: float
    """From the first pass to the last."""

    @property
    def log_probabilities(self) -> list[float]:
        """Of each new token; empty unless wanted."""
        return [score.log_probability for score in self.scores]

    @property
    def is_greedy(self) -> list[bool]:
        """Whether each new token was the likeliest; empty unless log probabilities were wanted."""
        return [score.is_greedy for score in self.scores]


def check_prompts(prompts: Sequence[Layout], context_length: int | None) -> None:
    """Refuses prompts that leave no room for a token.

    Raises:
        DataError: names the first one.
    """
    for index, prompt in enumerate(prompts):
        if context_length is not None and len(prompt) >= context_length:
            raise DataError(
                f"problem {index}: its prompt has {len(prompt)} positions, thoughts included; the model's context is "
                f"{context_length}; shorten the question or use fewer thoughts"
            )
