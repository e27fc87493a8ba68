"""The thoughts of all requests on the device, and what the next position of each request is.

A thought is an ordinary step of decoding: the token that it writes is ``<|latent|>``, and the input of the next step is
not that token's embedding but the state that the step computed. What a position is follows from its number and three
integers of the request's slot, so a step needs nothing from the host: from ``begin`` on there are ``count`` thoughts,
then ``<|end-latent|>``; everywhere else there is text.

vLLM takes a request out of its slot when it is finished and when it is preempted, and does not say which. A preempted
one comes back, and its later prompt contains ``<|latent|>`` tokens whose states are needed again. So the states of
requests that left are kept, in rows of their own, until as many others have left. Under first come, first served,
nothing new is admitted before a preempted request comes back, so at most as many requests as there are slots wait for
their rows.

Shapes:
    S  slots (max_num_seqs)
    T  most thoughts of a request
    D  hidden size
    B  requests in a step
    N  positions in a step
    V  vocabulary size
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coconut_vllm.card import Markers

PLAN = "coconut_plan"
"""Key of ``SamplingParams.extra_args`` by which the front end tells the workers how a request thinks."""
NEVER = 2**40
"""Stands for ``begin`` where a request has not begun to think: later than any position."""
ROW, BEGIN, COUNT, LEAST = range(4)


@dataclass(frozen=True)
class Plan:
    """How a request thinks."""

    count: int
    """Most thoughts."""
    least: int
    """After this many, thinking ends as soon as ``<|end-latent|>`` is the most probable token. Equal to ``count``: the
    model does not decide."""
    in_prompt: bool
    """The prompt ends with ``<|start-latent|>``; otherwise the model writes it when it decides to think."""


@dataclass(frozen=True)
class Decision:
    """What a step writes, before the sampler is asked."""

    forced: Tensor
    """[B] the token to write instead of the sampled one; -1 where the sampled one is written."""
    may_start: Tensor | None
    """[B] where the model may begin to think by writing ``<|start-latent|>``; None if no request may."""


class Thoughts:
    """The states of the thoughts, [2S + 1, T, D]: S rows for the slots, S of requests that left, and one that takes
    what is not a thought."""

    def __init__(self, slots: int, most: int, size: int, markers: Markers, dtype: torch.dtype, device: torch.device):
        """``slots``: S; ``most``: T; ``size``: D."""
        self.markers, self.device = markers, device
        self.states = torch.zeros(2 * slots + 1, max(most, 1), size, dtype=dtype, device=device)
        self._table = torch.zeros(4, slots, dtype=torch.int64, device=device)
        self._table[ROW] = self._spare = 2 * slots
        self._table[BEGIN] = NEVER
        self._banned = torch.tensor(markers.all, device=device)
        self._staged: list[tuple[int, int, int, int, int]] = []
        self._free = list(range(2 * slots))
        self._rows: dict[str, int] = {}
        """Rows of the requests that are in slots."""
        self._left: OrderedDict[str, int] = OrderedDict()
        """Rows of the requests that left their slots, the earliest first."""
        self._plans: dict[str, Plan] = {}
        """Plans of the requests that are in slots."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the states."""
        return self.states.numel() * self.states.element_size()

    def enter(self, request: str, slot: int, plan: Plan | None, ids: Sequence[int], prompt_length: int) -> None:
        """Notes that a request is now in a slot; ``apply`` tells the device.

        Args:
            request: its id.
            slot: the slot.
            plan: how it thinks; None: not at all.
            ids: the tokens of the prompt and, after a preemption, those that were written before it.
            prompt_length: number of tokens of the prompt.
        """
        self.leave(request)
        row, begin, count, least = self._spare, NEVER, 0, 0
        if plan is not None:
            begin, count, known = self._progress(plan, ids, prompt_length)
            least = min(plan.least, count)
            row = self._row(request, known)
            self._rows[request], self._plans[request] = row, plan
        self._staged.append((slot, row, begin, count, least))

    def _progress(self, plan: Plan, ids: Sequence[int], prompt_length: int) -> tuple[int, int, int]:
        """Where thinking begins, the number of thoughts as far as it is known, and how many there are already."""
        written = list(ids[prompt_length:])
        if plan.in_prompt:
            start = 0
        elif self.markers.start in written:
            start = written.index(self.markers.start) + 1
        else:
            return NEVER, plan.count, 0
        known = 0
        while start + known < len(written) and written[start + known] == self.markers.thought:
            known += 1
        has_ended = start + known < len(written)
        return prompt_length + start, known if has_ended else plan.count, known

    def _row(self, request: str, known: int) -> int:
        """A row for a request; its own one if it comes back.

        Raises:
            RuntimeError: it comes back with thoughts whose states are no longer kept.
        """
        own = self._left.pop(request, None)
        if own is not None:
            return own
        if known:
            raise RuntimeError(
                f"request {request} was resumed after {known} thoughts, but their states are no longer kept; this "
                "cannot happen under first come, first served, so please report it with vLLM's version and options"
            )
        if self._free:
            return self._free.pop()
        return self._left.popitem(last=False)[1]

    def leave(self, request: str) -> None:
        """Notes that a request is no longer in a slot; its thoughts are kept for a while."""
        if request in self._rows:
            del self._plans[request]
            self._left[request] = self._rows.pop(request)

    def apply(self) -> None:
        """Tells the device which requests have entered slots."""
        if self._staged:
            slots, *columns = torch.tensor(self._staged, device=self.device).T
            self._table[:, slots] = torch.stack(columns)
            self._staged.clear()

    def embed(self, embedded: Tensor, positions: Tensor, slots: Tensor, out: Tensor) -> None:
        """Writes the input embeddings of a step: thoughts where they belong, those of the tokens elsewhere.

        Args:
            embedded: [N, D] the embeddings of the tokens.
            positions: [N] the positions.
            slots: [N] the slot of each position's request.
            out: [N, D] receives them.
        """
        row, begin, count, _ = self._table[:, slots]
        index = positions - begin
        is_thought = (index >= 0) & (index < count)
        states = self.states[row, index.clamp(0, self.states.shape[1] - 1)]
        torch.where(is_thought.unsqueeze(1), states, embedded, out=out)

    def decide(
        self,
        logits: Tensor,
        states: Tensor,
        feed: Callable[[Tensor], Tensor] | None,
        slots: Tensor,
        next_positions: Tensor,
        is_writing: Tensor,
    ) -> Decision:
        """Stores states that become thoughts, forbids markers in texts, and says which tokens are forced.

        Args:
            logits: [B, V] changed in place: at positions of text, markers get -inf.
            states: [B, D] the states that the logits were computed from.
            feed: what states pass before they are fed back; None: nothing.
            slots: [B] the slot of each request.
            next_positions: [B] the positions of the tokens that are about to be written.
            is_writing: [B] whether a token is written at all: not if the prompt goes on.
        """
        markers, table = self.markers, self._table
        row, begin, count, least = table[:, slots]
        index = next_positions - begin
        thinks = (index >= 0) & (index < count) & is_writing
        plans = self._plans.values()
        if any(plan.least < plan.count for plan in plans):
            ends = thinks & (index >= least) & (logits.argmax(dim=-1) == markers.end)
            count = torch.where(ends, index, count)
            table[COUNT, slots] = count
            thinks = thinks & ~ends
        places = torch.where(thinks, row, self._spare), torch.where(thinks, index, 0)
        self.states[places] = (states if feed is None else feed(states)).to(self.states.dtype)
        ends_now = (index == count) & is_writing
        is_text = ~(thinks | ends_now)
        may_start = None
        if any(not plan.in_prompt for plan in plans):
            # A request that does not think has no row of its own.
            may_start = is_text & is_writing & (begin == NEVER) & (row != self._spare)
        self._ban(logits, is_text, may_start)
        forced = torch.where(thinks, markers.thought, torch.where(ends_now, markers.end, -1))
        return Decision(forced, may_start)

    def _ban(self, logits: Tensor, is_text: Tensor, may_start: Tensor | None) -> None:
        """Sets the logits [B, V] of markers to -inf at positions of text [B], but of the first where it may come."""
        kept = logits[:, self._banned]
        banned = is_text.unsqueeze(1).expand_as(kept)
        if may_start is not None:
            # ``start`` is the first of the markers.
            banned = banned.clone()
            banned[:, 0] &= ~may_start
        logits[:, self._banned] = kept.masked_fill(banned, -float("inf"))

    def begin_where_started(self, decision: Decision, sampled: Tensor, slots: Tensor, next_positions: Tensor) -> None:
        """Begins to think where the sampled tokens [B] are ``<|start-latent|>``."""
        if decision.may_start is not None:
            begins = decision.may_start & (sampled == self.markers.start)
            self._table[BEGIN, slots] = torch.where(begins, next_positions + 1, self._table[BEGIN, slots])
