"""The state of one running request: its remaining input, what it has generated, and whether it has ended."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import NamedTuple

from torch import Tensor

from coconut_ds.generation.edits import Draw, Edits
from coconut_ds.generation.requests import Completion, FinishReason, Request, Sampling, Score
from coconut_ds.generation.stop_strings import ends_with_stop
from coconut_ds.generation.together import Together

THOUGHT = -1
"""An input that is a thought, that is the previous hidden state; all other inputs are token ids."""


class Listener:
    """Callbacks that report the progress of a request. These do nothing; override those that you need."""

    def on_thought(self, ticket: int, index: int, state: Tensor) -> None:
        """Thought ``index`` (from 0) is about to be fed back.

        ``state``: [D] on the model's device, the thought as in ``Completion.thoughts``.
        """

    def on_token(self, ticket: int, token: int, score: Score | None) -> None:
        """A token was generated or, in a continuation, scored. ``score``: None unless requested."""

    def on_done(self, ticket: int, completion: Completion) -> None:
        """The request has ended. Not called for requests that are cancelled or have failed."""

    def on_failed(self, ticket: int, error: Exception) -> None:
        """The request alone has failed, and no other method is called for it again.

        ``error`` was raised by this listener, by the request's ``edit_thought`` or the engine's ``decode``, or says
        that the model's numbers for this request are not finite. This method raises it again, from the engine's step;
        override it to let the other requests go on.
        """
        raise error


class Beginning(NamedTuple):
    """Tokens at the beginning of a prompt, whose keys and values requests can share."""

    owner: str
    """Only requests of this owner may share them."""
    tokens: list[int]


@dataclass(eq=False)
class Row:
    """A request that has a slot or waits for one.

    While ``script`` contains inputs, the row follows it; while it is empty, the model writes. Shapes: D is the hidden
    size, n the number of thoughts that are computed together.
    """

    ticket: int
    """Number that identifies the request."""
    request: Request
    listener: Listener
    eos_ids: Sequence[int]
    """Tokens that end the request."""
    decode: Callable[[Sequence[int]], str] | None
    """Turns tokens into text; needed only for stop strings."""
    draw: InitVar[Draw]
    """Draws the request's noise."""
    edits: Edits = field(init=False)
    """What the request changes of what is fed back."""
    prefix: list[int] = field(init=False)
    """Tokens of the prompt before its first thought."""
    script: deque[int] = field(init=False)
    """Known inputs after the prefix: token ids and ``THOUGHT``. While it is empty, the model writes."""
    is_encoded: bool = False
    """Whether the prefix needs no further pass of its own."""
    input: int | None = None
    """Input of the next position, a token id or ``THOUGHT``; None until it is decided."""
    length: int = 0
    """Number of positions in the cache."""
    num_shared: int = 0
    """Number of positions that were copied from another slot instead of encoded."""
    together: Together | None = None
    """The thoughts that are being computed all at once; None if there are none."""
    tokens: list[int] = field(default_factory=list)
    """The tokens generated so far."""
    num_thoughts: int = 0
    """Number of thoughts so far."""
    finish_reason: FinishReason | None = None
    """Why the request has ended; None while it runs."""
    failure: Exception | None = None
    """What made this request alone fail; None if nothing did."""
    num_finite: int = 0
    """Number of positions whose keys and values are known to be finite, because a state that attends to all of them
    is."""
    kept_thoughts: list[Tensor] = field(default_factory=list)
    """The thoughts [D] so far, on the model's device, if the request wants them."""
    kept_fed: list[Tensor] = field(default_factory=list)
    """The vectors [D] that were fed back; empty where they are the thoughts."""
    _scores: list[Score] = field(default_factory=list)
    _began_thinking: bool = False
    _started: float = 0.0

    def __post_init__(self, draw: Draw) -> None:
        prompt = self.request.prompt
        self.edits = Edits(self.request, draw)
        self.prefix = list(prompt.input_ids[: prompt.first_thought])
        after = prompt.input_ids[prompt.first_thought + prompt.num_thoughts :]
        self.script = deque([THOUGHT] * prompt.num_thoughts + list(after))

    def start(self) -> None:
        """Starts the clock, when the row gets a slot."""
        self._started = time.perf_counter()

    @property
    def thinks_at_once(self) -> bool:
        """Whether thoughts come next that are to be computed together."""
        return self.request.at_once is not None and bool(self.script) and self.script[0] == THOUGHT

    @property
    def num_next_thoughts(self) -> int:
        """Number of thoughts at the front of the script."""
        return next((n for n, entry in enumerate(self.script) if entry != THOUGHT), len(self.script))

    def think_together(self, state: Tensor, fed: Tensor) -> None:
        """Begins to compute the next n thoughts at once; the arguments are those of ``Together``."""
        assert self.request.at_once is not None
        edited = partial(self.edits.of_several, self.num_thoughts)
        self.together = Together(self.request.at_once.how, state, fed, self.num_next_thoughts, edited)

    def finish_together(self) -> None:
        """Records the thoughts that were computed at once, whose positions are now in the cache."""
        assert self.together is not None
        fed, thoughts = self.together.inputs, self.together.thoughts
        for index, vector in enumerate(fed):
            self.script.popleft()
            self._record_thought(vector if thoughts is fed else thoughts[index], vector)
            self.length += 1
        self.together = None

    @property
    def has_ended(self) -> bool:
        """Whether the row is finished or has failed."""
        return self.finish_reason is not None or self.failure is not None

    @property
    def takes_steps(self) -> bool:
        """Whether the row takes part in the steps over one position: its prompt is encoded, and no thoughts of it are
        being computed together."""
        return self.is_encoded and self.together is None

    @property
    def beginning(self) -> Beginning:
        """The prefix, as far as other requests may share it with this one: not at all with noise on values."""
        return Beginning(self.request.owner, [] if self.request.has_noisy_values else self.prefix)

    @property
    def cached(self) -> Beginning:
        """The part of ``beginning`` that is in the cache."""
        owner, tokens = self.beginning
        return Beginning(owner, tokens[: self.length])

    @property
    def needs_logits(self) -> bool:
        """Whether the next input depends on the logits: the model writes, or may stop thinking."""
        return not self.script or self._may_stop_thinking

    @property
    def _may_stop_thinking(self) -> bool:
        least = self.request.min_thoughts
        return bool(self.script) and self.script[0] == THOUGHT and least is not None and self.num_thoughts >= least

    @property
    def banned(self) -> list[int]:
        """Ids of tokens that may not be chosen now; none if the row only asks whether to stop thinking."""
        if self.script:
            return []
        ends = list(self.eos_ids) if len(self.tokens) < self.request.min_new_tokens else []
        # A sequence may start thinking only once.
        starts = [self.request.thinking.start] if self.request.thinking and self._began_thinking else []
        return [*self.request.suppress, *ends, *starts]

    @property
    def sampling(self) -> Sampling:
        """How the next token is chosen; greedily if the row only asks whether to stop thinking."""
        return Sampling() if self.script else self.request.sampling

    @property
    def is_scored(self) -> bool:
        """Whether the next token needs a score."""
        return not self.script and (self.request.log_probabilities or self.request.continuation is not None)

    @property
    def next_given(self) -> int | None:
        """The next token of the continuation to be scored; None if the row generates its tokens."""
        given = None if self.script else self.request.continuation
        return None if given is None else given[len(self.tokens)]

    def follow_script(self, state: Tensor, fed: Tensor) -> None:
        """Takes the next input from the script.

        Args:
            state: [D] the state at the last position; a thought, if the input is one.
            fed: [D] what will then be fed back; the same tensor as ``state`` without a feed. The request's noise and
                its ``edit_thought`` change it in place.
        """
        self.input = self.script.popleft()
        if self.input == THOUGHT:
            if self.edits.are_any:
                fed.copy_(self.edits.of_one(self.num_thoughts, fed.clone()))
            self._record_thought(state, fed)

    def _record_thought(self, state: Tensor, fed: Tensor) -> None:
        """Counts, keeps and reports a thought [D]; ``fed`` [D] is fed back for it, the same tensor without a feed."""
        if self.request.keep_thoughts:
            self.kept_thoughts.append(state.clone())
            if fed is not state:
                self.kept_fed.append(fed.clone())
        self.listener.on_thought(self.ticket, self.num_thoughts, state)
        self.num_thoughts += 1

    def stop_thinking_if_end(self, likeliest: int) -> None:
        """Skips all remaining thoughts if the most probable token is the one that ends thinking."""
        if likeliest == self.request.end_thinking:
            while self.script and self.script[0] == THOUGHT:
                self.script.popleft()

    def write(self, token: int, score: Score | None, capacity: int) -> None:
        """Appends a token, and sets ``finish_reason`` if the request ends with it.

        Args:
            token: the token that was generated or scored.
            score: its score; None if not requested.
            capacity: positions in a slot.
        """
        self.tokens.append(token)
        if score is not None:
            self._scores.append(score)
        self.input = token
        self.listener.on_token(self.ticket, token, score)
        thinking = self.request.thinking
        if thinking is not None and token == thinking.start and not self._began_thinking:
            self._began_thinking = True
            self.script = deque([THOUGHT] * thinking.num_thoughts + [thinking.end])
        self.finish_reason = self._finish_reason(token, capacity)

    def _finish_reason(self, token: int, capacity: int) -> FinishReason | None:
        count = len(self.tokens)
        if self.request.continuation is not None:
            return "continuation" if count == len(self.request.continuation) else None
        if token in self.eos_ids:
            return "eos"
        if count >= self.request.min_new_tokens and self._has_stop_string():
            return "stop"
        return "length" if count >= self.request.max_new_tokens or self.length + 1 >= capacity else None

    def _has_stop_string(self) -> bool:
        if not self.request.stop:
            return False
        assert self.decode is not None
        return ends_with_stop(self.tokens, self.request.stop, self.decode)

    @property
    def next_input(self) -> int:
        """``input``, once it is decided; a token of the row's own if it takes no steps."""
        if not self.takes_steps:
            return self.prefix[0]
        assert self.input is not None
        return self.input

    def end(self, thoughts: Tensor | None, fed: Tensor | None) -> None:
        """Reports the completion to the listener. For the arguments see ``Completion``."""
        assert self.finish_reason is not None
        completion = Completion(
            self.tokens,
            self.finish_reason,
            self._scores,
            self.num_thoughts,
            thoughts,
            self.num_shared,
            time.perf_counter() - self._started,
            fed,
        )
        self.listener.on_done(self.ticket, completion)
