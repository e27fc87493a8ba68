"""Requests to the thinking engine, and the completions that it returns."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.thought_noise import SampleNoise

FinishReason = Literal["eos", "stop", "length", "continuation"]
"""Why generation ended: ``eos`` an end of sequence; ``stop`` a stop string; ``length`` ``max_new_tokens`` or the end of
the context; ``continuation`` the end of a continuation to be scored."""

MAX_SEED_BITS = 256
"""Size of the largest seed."""

EditThought = Callable[[int, Tensor], Tensor]
"""Called with the index of a thought (from 0) and the vector [D] that is about to be fed back, which is what the feed
makes of the thought; returns the vector [D] to feed back instead."""


@dataclass(frozen=True)
class Thinking:
    """For models that decide when to think: once the model writes ``start``, thoughts follow, and then ``end``."""

    start: int
    """Id of the token that starts thinking when the model writes it."""
    end: int
    """Id of the token that the model is given after its thoughts."""
    num_thoughts: int
    """Number of thoughts between the two."""


@dataclass(frozen=True)
class AtOnce:
    """All thoughts are computed together, in several passes."""

    how: Parallel
    """What the passes compute, and how many there are."""
    marker: int
    """Id of the thought marker, whose embedding is the first input of thoughts that are not known yet."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; greedy by default.

    The random draws depend only on the seed, the sample and the index of the token, not on other requests or on when
    they arrive.
    """

    temperature: float = 0.0
    """Divides the logits; 0 means greedy decoding."""
    top_k: int | None = None
    """Samples only from the k most probable tokens; None: from all."""
    top_p: float = 1.0
    """Samples only from the most probable tokens whose probabilities sum to this value; at least from one."""
    seed: int = 0
    """Seed of the random draws."""
    sample: int = 0
    """Index that distinguishes several samples of one prompt."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= sys.float_info.max:
            raise DataError(f"temperature={self.temperature}: expected a finite number, 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise DataError(f"top_k={self.top_k}: expected 1 or more, or none")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p={self.top_p}: expected more than 0 and at most 1")
        if self.seed.bit_length() > MAX_SEED_BITS:
            raise DataError(f"seed: has {self.seed.bit_length()} bits; expected at most {MAX_SEED_BITS}")

    def keyed(self, key: str) -> "Sampling":
        """The same with a seed that is a hash of ``key``."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return replace(self, seed=int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Request:
    """One continuation to generate or to score."""

    prompt: Layout
    """Tokens that the model is given, with at most one run of thoughts among them."""
    max_new_tokens: int
    """Largest number of tokens to generate."""
    min_new_tokens: int = 0
    """Neither an end of sequence nor a stop string ends the continuation before it has this many tokens."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are chosen."""
    suppress: tuple[int, ...] = ()
    """Ids of tokens that are never chosen, such as the thought markers, which only a prompt may contain."""
    thinking: Thinking | None = None
    """For models that decide when to think; None: all thoughts are in the prompt."""
    at_once: AtOnce | None = None
    """How to compute all thoughts together; None: they are computed one after another."""
    min_thoughts: int | None = None
    """After this many thoughts, thinking ends as soon as ``end_thinking`` is the most probable token. None: all
    thoughts of the prompt are computed."""
    end_thinking: int | None = None
    """Id of the token that ends thinking early (see ``min_thoughts``)."""
    stop: tuple[str, ...] = ()
    """Strings that end the continuation; the engine needs ``decode`` to find them. They are not removed from the
    tokens."""
    continuation: tuple[int, ...] | None = None
    """Tokens to score instead of generating any: the result has the log probability of each, given all before it."""
    log_probabilities: bool = False
    """Whether to return the log probabilities of generated tokens; those of a ``continuation`` are always returned."""
    num_likeliest: int = 0
    """Number of most probable tokens to return with each log probability; at most the whole vocabulary is returned."""
    keep_thoughts: bool = False
    """Whether to return the thoughts (``Completion.thoughts``)."""
    noise: SampleNoise | None = None
    """Noise on the vectors that are fed back, or on values at the positions of the prompt up to the last thought; None:
    no noise. Requests with noise on values share no keys and values with others."""
    edit_thought: EditThought | None = None
    """Replaces the vectors that are fed back, after ``noise``; later thoughts are computed from the replaced ones. With
    ``at_once`` it is called for every thought in every pass."""
    owner: str = ""
    """Whose request this is. Only requests of the same owner share keys and values of equal beginnings, so that
    ``Completion.num_shared`` tells nothing about the requests of others."""

    def __post_init__(self) -> None:
        if not len(self.prompt) or (self.prompt.num_thoughts and not self.prompt.first_thought):
            raise DataError("prompt: found no token before the first thought; expected at least one")
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens={self.max_new_tokens}: expected 1 or more")
        if self.num_likeliest < 0:
            raise DataError(f"num_likeliest={self.num_likeliest}: expected 0 or more")
        if self.continuation == ():
            raise DataError("continuation: found no token; expected at least one, or continuation=None")
        if self.at_once is not None and self.min_thoughts is not None:
            raise DataError(
                f"min_thoughts, max_thoughts: thinking={self.at_once.how.kind} makes all thoughts at once, so thinking "
                "cannot end early; leave them out"
            )
        if self.min_thoughts is not None and self.end_thinking is None:
            raise DataError(f"min_thoughts={self.min_thoughts}: needs end_thinking, the token that ends thinking")

    @property
    def num_new(self) -> int:
        """Largest number of tokens after the prompt."""
        return self.max_new_tokens if self.continuation is None else len(self.continuation)

    @property
    def num_thoughts(self) -> int:
        """Largest number of thoughts, in the prompt or started by the model."""
        return self.prompt.num_thoughts + (self.thinking.num_thoughts if self.thinking else 0)

    @property
    def has_noisy_values(self) -> bool:
        """Whether there is noise on values (``model/value_directions.py``)."""
        return self.noise is not None and self.noise.settings.kind == "svp" and self.num_thoughts > 0

    @property
    def num_positions(self) -> int:
        """Largest number of positions of prompt, thoughts and new tokens together."""
        own = self.thinking.num_thoughts + 1 if self.thinking else 0
        return len(self.prompt) + own + self.num_new

    def samples(self, count: int) -> Iterator["Request"]:
        """Yields the request ``count`` times, each with its own random draws. The engine encodes the prompt once."""
        return map(self.numbered, range(count))

    def numbered(self, sample: int) -> "Request":
        """Sample number ``sample`` of this request; number 0 is the request itself."""
        sampling = replace(self.sampling, sample=self.sampling.sample + sample)
        noise = None if self.noise is None else replace(self.noise, sample=self.noise.sample + sample)
        return replace(self, sampling=sampling, noise=noise)


class Score(NamedTuple):
    """The probability of one token, before temperature, top-k and top-p, but without suppressed tokens."""

    log_probability: float
    """Natural logarithm."""
    is_greedy: bool
    """Whether this is the most probable token."""
    likeliest: tuple[tuple[int, float], ...]
    """The ``Request.num_likeliest`` most probable tokens with their log probabilities, most probable first."""


class Completion(NamedTuple):
    """The result of a request. A tuple and not a dataclass, since ZeRO's hooks search return values for tensors."""

    tokens: list[int]
    """The new tokens, including the end of sequence if the model wrote it."""
    finish_reason: FinishReason
    """Why the continuation ended."""
    scores: list[Score]
    """The score of each new token; empty unless log probabilities were requested."""
    num_thoughts: int
    """Number of thoughts that were fed back."""
    thoughts: Tensor | None
    """[num_thoughts, D] the thoughts, on the CPU in fp32; None unless requested. The head decodes them. Without a feed
    they are the vectors in ``fed``; with one, the states before the feed and before any edit. With ``thinking=looped``
    thought i is the state of the position before it in the last pass, which does not become its input. With a single
    pass of ``thinking=jacobi``, only the first thought is a state; the others are the embedding of the thought marker,
    with and without a feed."""
    num_shared: int
    """Positions of the prompt whose keys and values were copied from another request with the same beginning."""
    seconds: float
    """Time from when the request got a slot until it ended; does not include waiting in the queue."""
    fed: Tensor | None = None
    """[num_thoughts, D] the input embeddings at the positions of the thoughts, after the feed and after any edit, on
    the CPU in fp32; None unless thoughts were requested. Feeding them again (``Request.edit_thought``) changes no bit
    of the result."""

    @property
    def log_probabilities(self) -> list[float]:
        """Log probability of each new token; empty unless requested."""
        return [score.log_probability for score in self.scores]

    @property
    def is_greedy(self) -> list[bool]:
        """Whether each new token was the most probable one; empty unless log probabilities were requested."""
        return [score.is_greedy for score in self.scores]


def check_prompts(prompts: Sequence[Layout], context_length: int | None) -> None:
    """Refuses prompts that leave no room for a new token in the context.

    Raises:
        DataError: names the first prompt that is too long.
    """
    for index, prompt in enumerate(prompts):
        if context_length is not None and len(prompt) >= context_length:
            raise DataError(
                f"problem {index}: its prompt has {len(prompt)} positions, thoughts included; the model's context is "
                f"{context_length} (its attention window, if that is shorter); shorten the question or use fewer "
                "thoughts"
            )
