"""A request while it runs: what it will be given, what it has written, and when it ends."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coconut_ds.generation.requests import Completion, FinishReason, Request, Score

THOUGHT = -1
"""Stands for a thought in a script, where other entries are tokens."""


class Listener:
    """What a caller is told of a request while it runs. Does nothing as it stands."""

    def on_thought(self, ticket: int, index: int, state: Tensor) -> None:
        """Thought ``index`` (from 0) of a request, as it is fed back: [D], on the model's device."""

    def on_token(self, ticket: int, token: int, score: Score | None) -> None:
        """A token was written, or given where a continuation is scored. ``score``: None unless wanted."""

    def on_done(self, ticket: int, completion: Completion) -> None:
        """The request has ended."""


@dataclass(eq=False)
class Row:
    """A request with its slot's state. ``eos_ids`` end it."""

    ticket: int
    request: Request
    listener: Listener
    eos_ids: Sequence[int]
    decode: Callable[[Sequence[int]], str] | None
    prefix: list[int] = field(init=False)
    """The tokens of the prompt before its first thought."""
    script: deque[int] = field(init=False)
    """What it will be given after its prefix: tokens and ``THOUGHT``; with an empty script it writes."""
    input: int | None = None
    """The next position's token or ``THOUGHT``; None until it is decided."""
    length: int = 0
    """Positions in the cache."""
    num_shared: int = 0
    fed: Tensor | None = None
    """[n, D] what its thoughts will be given in the next pass over all of them (Jacobi); None outside of those."""
    iteration: int = 0
    tokens: list[int] = field(default_factory=list)
    num_thoughts: int = 0
    finish_reason: FinishReason | None = None
    _scores: list[Score] = field(default_factory=list)
    _thoughts: list[Tensor] = field(default_factory=list)
    _began_thinking: bool = False
    _started: float = 0.0

    def __post_init__(self) -> None:
        prompt = self.request.prompt
        self.prefix = list(prompt.input_ids[: prompt.first_thought])
        after = prompt.input_ids[prompt.first_thought + prompt.num_thoughts :]
        self.script = deque([THOUGHT] * prompt.num_thoughts + list(after))

    def start(self) -> None:
        """The row has a slot: its time begins."""
        self._started = time.perf_counter()

    @property
    def begins_iterating(self) -> bool:
        """Whether its thoughts come next, all at once."""
        return self.request.jacobi is not None and bool(self.script) and self.script[0] == THOUGHT

    @property
    def num_coming(self) -> int:
        """Thoughts at the head of its script."""
        return next((n for n, entry in enumerate(self.script) if entry != THOUGHT), len(self.script))

    def end_iterating(self, fed: Tensor) -> None:
        """Its thoughts [n, D] are settled, and their positions in the cache."""
        for state in fed:
            self.script.popleft()
            self._think(state)
            self.length += 1
        self.fed = None

    def edited(self, fed: Tensor) -> Tensor:
        """[n, D] what its coming thoughts are given, edits of the request made."""
        edit = self.request.edit_thought
        if edit is None:
            return fed
        return torch.stack([edit(self.num_thoughts + index, state).to(fed) for index, state in enumerate(fed)])

    @property
    def needs_logits(self) -> bool:
        """Whether its next input depends on what the model would write."""
        return not self.script or self._may_stop_thinking

    @property
    def _may_stop_thinking(self) -> bool:
        least = self.request.min_thoughts
        return bool(self.script) and self.script[0] == THOUGHT and least is not None and self.num_thoughts >= least

    @property
    def banned(self) -> list[int]:
        """Tokens that it may not choose now, beside those it never may."""
        ends = list(self.eos_ids) if len(self.tokens) < self.request.min_new_tokens else []
        # Nobody thinks twice.
        return [*ends, self.request.thinking.start] if self.request.thinking and self._began_thinking else ends

    def follow_script(self, state: Tensor) -> None:
        """Its next input, as the script says; ``state`` [D], of its last position, becomes what is fed back."""
        self.input = self.script.popleft()
        if self.input == THOUGHT:
            if self.request.edit_thought is not None:
                state.copy_(self.request.edit_thought(self.num_thoughts, state.clone()))
            self._think(state)

    def _think(self, state: Tensor) -> None:
        """Takes what is fed back as its next thought, [D]."""
        if self.request.keep_thoughts:
            self._thoughts.append(state.float().cpu().clone())
        self.listener.on_thought(self.ticket, self.num_thoughts, state)
        self.num_thoughts += 1

    def stop_thinking_at(self, likeliest: int) -> None:
        """Leaves out the thoughts to come where the model would rather write the token that ends thinking."""
        if likeliest == self.request.end_thinking:
            while self.script and self.script[0] == THOUGHT:
                self.script.popleft()

    @property
    def given(self) -> int | None:
        """The next token of the continuation that is scored."""
        return None if self.request.continuation is None else self.request.continuation[len(self.tokens)]

    def write(self, token: int, score: Score | None, capacity: int) -> None:
        """Takes a token and sees whether the row has ended. ``score``: None where it is not wanted."""
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
        # A token has at least one byte; a few more, since a decoder may treat the first ones differently.
        tail = self.tokens[-(max(len(text.encode()) for text in self.request.stop) + 8) :]
        text = self.decode(tail)
        return any(stop in text for stop in self.request.stop)

    def end(self) -> None:
        """Tells the listener."""
        assert self.finish_reason is not None
        kept = self.request.keep_thoughts
        completion = Completion(
            self.tokens,
            self.finish_reason,
            self._scores,
            self.num_thoughts,
            (torch.stack(self._thoughts) if self._thoughts else torch.zeros(0)) if kept else None,
            self.num_shared,
            time.perf_counter() - self._started,
        )
        self.listener.on_done(self.ticket, completion)
