"""The thinking engine: many requests at a time over one key/value cache, with continuous batching.

A request holds a *slot*: a row of the cache. Its prompt is encoded up to its first thought. From then on a thought and
a token are the same one-position pass with another input row, so requests in all phases share each pass. A row that
has ended leaves at once, and a waiting one takes its place.

The work is a sequence of three kinds of operation: *encode* prompts, *choose* tokens, *advance* all rows by a position.
Ranks of a ZeRO-3 engine must make the same passes: ``run`` lets them agree on each operation, and a rank that has
nothing to do in it makes an empty one.

A prompt that begins like one in the cache copies what is there: several samples of a prompt, several numbers of
thoughts, a long introduction before many questions.

Legend: ``D`` hidden size, ``V`` vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.generation.attention import switch_for
from coconut_ds.generation.requests import Request, Score
from coconut_ds.generation.rows import THOUGHT, Listener, Row
from coconut_ds.generation.sampling import choose
from coconut_ds.generation.slot_table import SlotTable
from coconut_ds.generation.slots import PassPlan, SlotCache
from coconut_ds.model.latent_loop import LatentLoop

PASS_POSITIONS = 2048
"""Positions that one pass over several prompts holds at most, pads included."""


class Op(IntEnum):
    """What there is to do; the greatest comes first."""

    NOTHING = 0
    ADVANCE = 1
    CHOOSE = 2
    ITERATE = 3
    ENCODE = 4


class ThinkingEngine:
    """Runs requests: ``submit`` them, then ``run``, or ``step`` while ``due`` says that there is something to do."""

    def __init__(
        self,
        loop: LatentLoop,
        eos_ids: Iterable[int],
        slots: int,
        capacity: int,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """
        Args:
            loop: the model, in evaluation mode.
            eos_ids: tokens that end a continuation.
            slots: requests that run at a time.
            capacity: positions of a slot; a sequence ends there.
            decode: text of tokens; needed for stop strings.

        Raises:
            ModelError: the model's layers have an attention of their own.
        """
        self._loop, self._eos_ids, self._decode = loop, tuple(eos_ids), decode
        self.capacity = capacity
        self.cache = SlotCache(loop.num_layers, slots, capacity)
        self._attention = switch_for(loop.model)
        self._tickets = itertools.count()
        self._table = SlotTable(self.cache, slots)
        self._last: Tensor | None = None
        """[slots, D] the state at each row's last position."""
        self._banned: dict[tuple[int, ...], Tensor] = {}

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._table.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._table.waiting)

    @property
    def num_held(self) -> int:
        """Positions of the cache that requests hold."""
        return sum(self._table[slot].length for slot in self._table.running)

    @property
    def num_shared(self) -> int:
        """Positions of prompts that were copied, not encoded, so far."""
        return self._table.num_shared

    def submit(self, request: Request, listener: Listener | None = None) -> int:
        """Puts a request in the queue; returns its ticket.

        Raises:
            DataError: its prompt leaves no room for a token, or it has stop strings that cannot be looked for.
        """
        if len(request.prompt) >= self.capacity:
            raise DataError(
                f"prompt: has {len(request.prompt)} positions, thoughts included; there is room for {self.capacity}, "
                "new tokens included; shorten it or use fewer thoughts"
            )
        if request.stop and self._decode is None:
            raise DataError(f"stop={list(request.stop)}: this engine was made without decode, so it reads no text")
        row = Row(next(self._tickets), request, listener or Listener(), self._eos_ids, self._decode)
        self._table.waiting.append(row)
        return row.ticket

    def cancel(self, ticket: int) -> bool:
        """Forgets a request; whether it was there. Its listener hears nothing more."""
        return self._table.cancel(ticket)

    def run(self, agree: Callable[[int], int] = int) -> None:
        """Steps until nothing is left to do on any rank. ``agree``: the largest of what all ranks pass."""
        while op := Op(agree(self.due())):
            self.step(op)

    def due(self) -> Op:
        """What there is to do next. Rows that have ended leave, and waiting ones take their slots."""
        table = self._table
        for slot in table.running:
            if table[slot].finish_reason is not None:
                table.free(slot).end()
        table.admit()
        if table.to_encode:
            return Op.ENCODE
        if any(table[slot].fed is not None for slot in table.running):
            return Op.ITERATE
        if any(table[slot].input is None for slot in table.running):
            return Op.CHOOSE
        return Op.ADVANCE if table.running else Op.NOTHING

    @torch.no_grad()
    def step(self, op: Op) -> None:
        """One operation; an empty one where it is not due."""
        is_due = self.due() is op
        with self._attention:
            if not is_due:
                self._idle(op)
            elif op is Op.ENCODE:
                self._encode()
            elif op is Op.ITERATE:
                self._iterate()
            elif op is Op.CHOOSE:
                self._choose()
            elif op is Op.ADVANCE:
                self._advance()

    def _encode(self) -> None:
        """One pass over prompts of which nothing is there, or over the rest of one of which something is."""
        table = self._table
        slots = [table.to_encode[0]]
        if table[slots[0]].length:
            states = self._encode_rest(table[slots[0]], slots[0])
        else:
            # The shortest first: rows of a pass are of like length, and it holds as many as may be.
            lengths = {slot: len(table[slot].prefix) for slot in table.to_encode if not table[slot].length}
            fresh = sorted(lengths, key=lengths.__getitem__)
            slots = [slot for i, slot in enumerate(fresh) if i == 0 or lengths[slot] * (i + 1) <= PASS_POSITIONS]
            states = self._encode_fresh([table[slot] for slot in slots], slots)
        for slot, state in zip(slots, states, strict=True):
            table.to_encode.remove(slot)
            table[slot].length = len(table[slot].prefix)
            self._keep(state, slot)
            self._decide(slot)

    def _encode_fresh(self, rows: list[Row], slots: list[int]) -> Tensor:
        """States [R, D] at the ends of whole prefixes. Pads stand on the right, where causal attention sees none."""
        lengths = [len(row.prefix) for row in rows]
        width = max(lengths)
        ids = self._tensor([[*row.prefix, *[0] * (width - len(row.prefix))] for row in rows])
        self.cache.set_plan(PassPlan(fresh=slots))
        places = torch.arange(width, device=ids.device).unsqueeze(0)
        ends = self._tensor([row * width + length - 1 for row, length in enumerate(lengths)])
        states = self._loop.states(self._loop.embed(ids), self.cache, None, places, read=ends)
        return states.flatten(0, 1)[ends]

    def _encode_rest(self, row: Row, slot: int) -> Tensor:
        """State [1, D] at the end of a prefix whose first ``length`` positions are in the cache."""
        return self._extend(slot, row.length, self._loop.embed(self._tensor([row.prefix[row.length :]])))[:, -1]

    def _extend(self, slot: int, start: int, embeds: Tensor) -> Tensor:
        """States [1, n, D] of several positions of a row, from ``start`` on, for embeddings [1, n, D]."""
        end = start + embeds.shape[1]
        self.cache.set_plan(PassPlan(extended=(slot, start, end)))
        places = torch.arange(start, end, device=embeds.device)
        mask = torch.arange(end, device=embeds.device) <= places[:, None]
        return self._loop.states(embeds, self.cache, mask[None, None], places.unsqueeze(0))

    def _iterate(self) -> None:
        """One pass over all thoughts of a row (Jacobi); after the last one they are settled."""
        slot = next(slot for slot in self._table.running if self._table[slot].fed is not None)
        row = self._table[slot]
        assert self._last is not None and row.fed is not None and row.request.jacobi is not None  # noqa: PT018
        states = self._extend(slot, row.length, row.fed.unsqueeze(0))[0]
        row.iteration += 1
        if row.iteration < min(row.request.jacobi.iterations, len(states)):
            row.fed = row.edited(torch.cat([row.fed[:1], states[:-1]]))
            return
        row.end_iterating(row.fed)
        self._keep(states[-1], slot)
        self._decide(slot)

    def _choose(self) -> None:
        """Tokens of all rows that write, and whether to go on thinking for those that may stop."""
        slots = [slot for slot in self._table.running if self._table[slot].input is None]
        rows = [self._table[slot] for slot in slots]
        assert self._last is not None
        logits = self._loop.head(self._last[self._tensor(slots)])
        writing = [index for index, row in enumerate(rows) if not row.script]
        for index in set(range(len(rows))) - set(writing):
            rows[index].stop_thinking_at(int(logits[index].argmax()))
            if rows[index].script:
                rows[index].follow_script(self._last[slots[index]])
        if writing:
            self._write([rows[index] for index in writing], logits[writing] if len(writing) < len(rows) else logits)

    def _write(self, rows: list[Row], logits: Tensor) -> None:
        """A token for each row, from logits [rows, V]; changes them."""
        for index, row in enumerate(rows):
            banned = (*row.request.suppress, *row.banned)
            if banned not in self._banned:
                self._banned[banned] = self._tensor(banned).long()
            logits[index, self._banned[banned]] = float("-inf")
        tokens = choose(logits, [row.request.sampling for row in rows], [len(row.tokens) for row in rows])
        wants = [index for index, row in enumerate(rows) if row.request.log_probabilities or row.given is not None]
        scores = dict(zip(wants, logits[wants].log_softmax(dim=-1), strict=True)) if wants else {}
        for index, row in enumerate(rows):
            token = tokens[index] if row.given is None else row.given
            score = _score(scores[index], token, row.request.num_likeliest) if index in scores else None
            row.write(token, score, self.capacity)

    def _advance(self) -> None:
        """One position for every row."""
        for source, target in self._table.close_gaps():
            assert self._last is not None
            self._last[target] = self._last[source]
        rows = [self._table[slot] for slot in self._table.running]
        inputs = [row.input for row in rows]
        embeds = self._loop.embed(self._tensor([0 if token == THOUGHT else token for token in inputs]))
        if THOUGHT in inputs:
            assert self._last is not None
            thinks = self._tensor([token == THOUGHT for token in inputs])
            embeds = torch.where(thinks[:, None], self._last[: len(rows)], embeds)
        places = self._tensor([row.length for row in rows])
        columns = max(row.length for row in rows) + 1
        if embeds.dtype == torch.bfloat16 and 3 * columns > 2 * self.capacity:
            # Whole rows lie in one piece; torch would copy parts of them together to multiply in bf16 on the CPU.
            columns = self.capacity
        self.cache.set_plan(PassPlan(places=places, columns=columns))
        mask = torch.arange(columns, device=places.device) <= places[:, None]
        states = self._loop.states(embeds.unsqueeze(1), self.cache, mask[:, None, None], places.unsqueeze(1))[:, 0]
        self._keep(states, slice(len(rows)))
        for slot, row in enumerate(rows):
            row.length += 1
            self._decide(slot)

    def _idle(self, op: Op) -> None:
        """The same modules on one position of nothing, for the sake of other ranks."""
        if op is Op.CHOOSE:
            weight = next(self._loop.model.base_model.parameters())
            self._loop.head(torch.zeros(1, self._loop.width, dtype=weight.dtype, device=self._loop.device))
        else:
            self.cache.set_plan(PassPlan())
            self._loop.states(self._loop.embed(self._tensor([[0]])), self.cache, None, self._tensor([[0]]))

    # Small things

    def _keep(self, states: Tensor, where: int | slice) -> None:
        """The states at rows' last positions, [D] or [rows, D]."""
        if self._last is None:
            self._last = states.new_zeros(len(self._table), states.shape[-1])
        self._last[where] = states

    def _decide(self, slot: int) -> None:
        """The row's next input where its script says; else it stays open until tokens are chosen."""
        row = self._table[slot]
        assert self._last is not None
        row.input = None
        if row.length + (row.num_coming if row.begins_iterating else 1) > self.capacity:
            row.finish_reason = "length"
        elif row.begins_iterating:
            jacobi, count = row.request.jacobi, row.num_coming
            assert jacobi is not None
            guess = self._loop.embed(self._tensor([jacobi.guess] * (count - 1)).long())
            row.fed, row.iteration = row.edited(torch.cat([self._last[slot : slot + 1], guess])), 0
        elif not row.needs_logits:
            row.follow_script(self._last[slot])

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self._loop.device)


def _score(log_probabilities: Tensor, token: int, num_likeliest: int) -> Score:
    """Of a token, from log probabilities [V]."""
    values, ids = log_probabilities.topk(max(num_likeliest, 1))
    likeliest = list(zip(ids.tolist(), values.tolist(), strict=True))
    return Score(
        float(log_probabilities[token]), token == int(log_probabilities.argmax()), tuple(likeliest[:num_likeliest])
    )
