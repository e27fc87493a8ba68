"""The thinking engine: generates for many requests at a time over one key/value cache, with continuous batching.

Each running request holds a *slot*, which is one row of the cache. Its prompt is encoded up to its first thought. After
that, producing a thought and producing a token are the same kind of forward pass over one position, which differ only
in the input embedding: the previous hidden state (or what the feed makes of it), or a token's embedding. So requests
that think and requests that write share each pass. A request that has ended frees its slot at once, and a waiting one
gets it.

The engine does one operation at a time (``Op``):

* *encode*: one pass over the prompts of new requests, up to their first thoughts, or over a piece of a long prompt.
* *iterate*: one pass over all thoughts of one request (only with ``method.thinking=jacobi`` or ``looped``).
* *choose*: run the head at the last state of each request that writes, and choose its next token.
* *advance*: one pass that appends one position, a token or a thought, to every running request.

If several are due, the one that comes first in this list is done first, so that as many requests as possible share each
advance. An engine with ``piece`` does only a limited part of the first two between two advances (``prefill.py``), so
that running requests do not wait for long prompts. Under ZeRO-3 all ranks must make the same forward passes: ``run``
lets them agree on each operation, and a rank that has no work of that kind makes an empty pass.

If a prompt begins like one whose keys and values are still in the cache, these are copied instead of computed. This
pays off for several samples of a prompt, several numbers of thoughts, and a long common introduction.

A request's callbacks, and its numbers that are not finite, make only this request fail (``Listener.on_failed``).

Shapes:
    n  thoughts that are computed together
    D  hidden size
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import partial

import torch

from coconut_ds.errors import DataError
from coconut_ds.generation.attention import switch_for
from coconut_ds.generation.engine_noise import EngineNoise
from coconut_ds.generation.pass_size import PassSize
from coconut_ds.generation.prefill import Prefill
from coconut_ds.generation.progress import Progress
from coconut_ds.generation.request_checks import check_request
from coconut_ds.generation.requests import Request
from coconut_ds.generation.rows import Listener, Row
from coconut_ds.generation.slot_passes import SlotPasses
from coconut_ds.generation.slot_table import SlotTable
from coconut_ds.generation.slots import SlotCache
from coconut_ds.generation.step_graphs import Capturer, capturer_for
from coconut_ds.generation.steps import EagerSteps, StaticSteps, Steps
from coconut_ds.model.latent_loop import LatentLoop

PASS_POSITIONS = 2048
"""Number of positions, padding included, that one pass over several prompts may always have; on CUDA it may have more
(``pass_size.py``). A longer prompt is encoded alone."""


class Op(IntEnum):
    """The engine's operations. Of those that are due, the greatest is done first."""

    NOTHING = 0
    ADVANCE = 1
    CHOOSE = 2
    ITERATE = 3
    ENCODE = 4


class ThinkingEngine:
    """Runs requests. ``submit`` them, then call ``run``, or ``step(due())`` until ``due`` returns ``Op.NOTHING``."""

    def __init__(
        self,
        loop: LatentLoop,
        eos_ids: Iterable[int],
        slots: int,
        capacity: int,
        decode: Callable[[Sequence[int]], str] | None = None,
        capturer: Capturer | None = None,
        piece: int | None = None,
        pass_positions: int | None = None,
    ) -> None:
        """
        Args:
            loop: the model, in evaluation mode.
            eos_ids: tokens that end a continuation.
            slots: how many requests run at a time.
            capacity: positions in a slot; a sequence that reaches it ends there.
            decode: turns tokens into text; needed only for stop strings.
            capturer: makes graphs of the one-position step; None: CUDA graphs on CUDA, else none.
            piece: about the largest number of positions of prompts to encode between two steps of a few requests, for
                servers; more requests allow more positions (``prefill.py``). None: whole prompts, which is fastest.
            pass_positions: the largest number of positions in a pass; None: ``PASS_POSITIONS``, or more on CUDA.

        Raises:
            ModelError: the model's layers do not accept an attention function.
        """
        # The head cannot write an id beyond its vocabulary.
        self._eos_ids, self._decode = tuple(one for one in eos_ids if 0 <= one < loop.vocabulary), decode
        self.capacity, self._loop, self._pass_positions = capacity, loop, pass_positions
        self._capturer = capturer or capturer_for(loop)
        self._passes = SlotPasses(loop, slots, capacity, scratch=self._capturer is not None)
        self._attention, self._tickets = switch_for(loop.model), itertools.count()
        self._table = SlotTable(self.cache, slots, self._passes.is_finite)
        self._pass_size = PassSize(loop, self.cache)
        self._prefill = Prefill(self._table, piece, self._passes.widened, loop.width)
        self._progress = Progress(self._table, self._passes)
        self._steps_made: Steps | None = None
        self._noise = EngineNoise(loop)

    @property
    def cache(self) -> SlotCache:
        """The keys and values of all slots."""
        return self._passes.cache

    @property
    def num_running(self) -> int:
        """Number of requests that hold a slot. Any thread may ask, here and below."""
        return self._table.num_running

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._table.waiting)

    @property
    def num_held(self) -> int:
        """Number of cache positions that running requests use."""
        return self._table.num_held

    @property
    def num_shared(self) -> int:
        """Number of prompt positions so far that were copied from another prompt instead of encoded."""
        return self._table.num_shared

    @torch.no_grad()
    def take_memory(self) -> None:
        """Takes the memory of all slots of a new engine now, after a pass from which the sizes follow."""
        with self._attention:
            self._passes.encode([[0]], [0])
            self.cache.take_memory()
            if self._capturer is not None:
                # Its buffers have a row of logits for each slot.
                _ = self._steps

    def close(self) -> None:
        """Gives the memory of the cache back at once. The engine cannot be used any more."""
        self.cache.release()

    def submit(self, request: Request, listener: Listener | None = None) -> int:
        """Adds a request to the queue. Returns its ticket, the number by which listener and ``cancel`` identify it.

        Raises:
            DataError: see ``check_request``; or the request has stop strings and the engine no ``decode``.
        """
        check_request(request, self._loop, self._eos_ids, self.capacity)
        if request.stop and self._decode is None:
            raise DataError(f"stop={list(request.stop)}: this engine was made without decode, so it reads no text")
        if request.has_noisy_values:
            self._noise.is_on_values = True
            # A captured step would repeat the noise of the rows that it was captured with.
            self._capturer = self._steps_made = None
        row = Row(next(self._tickets), request, listener or Listener(), self._eos_ids, self._decode, self._noise.draw)
        self._table.waiting.append(row)
        return row.ticket

    def cancel(self, ticket: int) -> bool:
        """Drops a request; its listener is not called again. Returns whether the request was waiting or running."""
        return self._table.cancel(ticket)

    def run(self, agree: Callable[[int], int] = int) -> None:
        """Steps until no rank has anything left to do.

        ``agree`` returns the maximum of its argument over all ranks; by default there is one rank.
        """
        while op := Op(agree(self.due())):
            self.step(op)

    def due(self) -> Op:
        """The next operation. Also ends requests that are finished and gives their slots to waiting ones."""
        self._progress.end_rows()
        table, prefill = self._table, self._prefill
        if table.waiting:
            table.admit(prefill.admitted(self._pass_positions or PASS_POSITIONS))
        stepping = table.stepping
        if prefill.may_work:
            iterates = any(table[slot].together is not None for slot in table.running)
            if table.to_encode and (prefill.encodes_first or not iterates):
                return Op.ENCODE
            if iterates:
                return Op.ITERATE
        if any(table[slot].input is None for slot in stepping):
            return Op.CHOOSE
        return Op.ADVANCE if stepping else Op.NOTHING

    @torch.no_grad()
    def step(self, op: Op) -> None:
        """Does one operation. If another one is due on this rank, makes an empty pass instead."""
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

    @property
    def _steps(self) -> Steps:
        """The one-position steps; made after the first pass, which they need."""
        if self._steps_made is None:
            make = EagerSteps if self._capturer is None else partial(StaticSteps, capturer=self._capturer)
            self._steps_made = make(self._passes)
        return self._steps_made

    def _encode(self) -> None:
        """One pass: over several prompts of which nothing is cached, or over the rest of one that is cached in part."""
        table = self._table
        slots, end = self._prefill.next(self._pass_positions or self._pass_size.positions(PASS_POSITIONS))
        rows = [table[slot] for slot in slots]
        parts = [row.prefix[row.length : end] for row in rows]
        if rows[0].length:
            # Rows with noise on values share no prompt (``SlotTable``), so this pass has none.
            self._passes.extend(slots[0], rows[0].length, self._passes.embed(parts[0]), all_states=end is None)
        else:
            with self._noise.on_values(rows):
                self._passes.encode(parts, slots)
        self._prefill.note(sum(map(len, parts)), rows[0].length, is_encoding=True)
        for slot, row, part in zip(slots, rows, parts, strict=True):
            row.length += len(part)
            if row.length == len(row.prefix):
                table.encoded(slot)
                self._progress.after_pass(slot)

    def _iterate(self) -> None:
        """One pass over all thoughts of one request; the last such pass makes them final."""
        slot = next(slot for slot in self._table.running if self._table[slot].together is not None)
        row = self._table[slot]
        assert row.together is not None
        assert row.request.at_once is not None
        # Under ZeRO-3, every rank embeds tokens once in each pass, as ``idle`` does, and makes the pass in any case.
        marker = inputs = self._passes.embed([row.request.at_once.marker] * row.together.count)
        try:
            row.together.begin(marker)
            inputs = row.together.inputs
        except Exception as error:
            row.failure = error
        with self._noise.on_values([row]):
            states = self._passes.extend(slot, row.length, inputs)
        self._prefill.note(len(inputs), row.length, is_encoding=False)
        self._progress.after_thoughts(slot, *states)

    def _choose(self) -> None:
        """Chooses the tokens of all requests that write, and whether those that may stop thinking do so."""
        slots = [slot for slot in self._table.stepping if self._table[slot].input is None]
        rows = [self._table[slot] for slot in slots]
        for slot, choice in zip(slots, self._steps.choices(slots, rows), strict=True):
            self._progress.after_choice(slot, choice)

    def _advance(self) -> None:
        """One pass that appends one position to every running request that takes steps."""
        for source, target in self._table.close_gaps():
            self._passes.move(source, target)
        rows = [self._table[slot] for slot in range(self._table.stepping[-1] + 1)]
        with self._noise.on_values(rows, only_thoughts=True):
            self._steps.advance(rows)
        self._prefill.note_step()
        for slot, row in enumerate(rows):
            if row.takes_steps:
                row.length += 1
                self._progress.after_pass(slot)
            else:
                # The position was computed only because the row is among others; its next pass replaces it.
                row.num_finite = -1

    def _idle(self, op: Op) -> None:
        """Runs the modules that ``op`` runs, without any effect, because other ranks run them (ZeRO-3)."""
        if op is Op.CHOOSE:
            self._passes.idle_head()
        else:
            self._passes.idle()
