"""The one-position step of the thinking engine, and the choice of tokens after it, in two forms with equal results.

* ``EagerSteps`` runs the model over the rows that there are, and its head over those that need a token.
* ``StaticSteps`` has fixed shapes and addresses, so that a CUDA graph can repeat it (``step_graphs.py``): inputs,
  states, bans, logits and the most probable tokens are in buffers with a row for each slot. The step computes the head
  for all rows, also those that think, and the host reads one buffer for each token.

Shapes:
    S  slots
    R  rows in one pass
    W  tokens that a row can ban
    D  hidden size
    V  vocabulary size
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

from coconut_ds.generation.choices import NO_TOKEN, Choice, ban, ban_for, choices
from coconut_ds.generation.rows import Row
from coconut_ds.generation.sampling import only_finite
from coconut_ds.generation.slot_passes import SlotPasses
from coconut_ds.generation.step_graphs import Capturer, StepGraphs
from coconut_ds.generation.uploads import fill, padded, upload
from coconut_ds.model.widths import rounded_up

FEWEST_BANNED = 8
"""The initial W."""
FEWEST_COLUMNS = 64
"""Graphs differ in the number of columns that they read, by an eighth of a slot but by no fewer than this."""


class Steps(Protocol):
    """What the engine needs."""

    def advance(self, rows: Sequence[Row]) -> None:
        """Appends ``Row.input`` of each row to its slot; the rows are those in the slots 0, 1, …"""

    def choices(self, slots: Sequence[int], rows: Sequence[Row]) -> list[Choice]:
        """The next tokens of ``rows``, which are in ``slots``, from the states at their last positions."""


class EagerSteps:
    """Steps without fixed shapes."""

    def __init__(self, passes: SlotPasses) -> None:
        self._passes = passes

    def advance(self, rows: Sequence[Row]) -> None:
        """See ``Steps``."""
        unread = {slot for slot, row in enumerate(rows) if not row.takes_steps}
        self._passes.advance([(row.next_input, row.length) for row in rows], unread)

    def choices(self, slots: Sequence[int], rows: Sequence[Row]) -> list[Choice]:
        """See ``Steps``."""
        logits = self._passes.logits(slots)
        ban_for(logits, rows)
        return choices(logits, rows)


class StaticSteps:
    """Steps with fixed shapes and addresses."""

    def __init__(self, passes: SlotPasses, capturer: Capturer) -> None:
        """``passes`` must have encoded a prompt: it then knows the type of states and has allocated the cache."""
        self._passes, self._graphs = passes, StepGraphs(capturer)
        slots, device = passes.slots, passes.last.device
        example = passes.logits([0])
        self._logits = example.new_zeros(slots, example.shape[1])
        self._likeliest = torch.zeros(slots, dtype=torch.int64, device=device)
        self._orders = torch.zeros(slots, 2 + FEWEST_BANNED, dtype=torch.int64, device=device)
        """[S, 2 + W] for each slot the input, its position, and the tokens that are banned after it."""
        self._answered: set[tuple[int, int]] = set()
        """The tickets of the rows for which ``_logits`` and ``_likeliest`` hold, with their lengths at that time."""

    def advance(self, rows: Sequence[Row]) -> None:
        """See ``Steps``."""
        passes, banned = self._passes, [row.banned for row in rows]
        self._make_room(max(map(len, banned)))
        count = row_bucket(len(rows), passes.slots)
        columns = column_bucket(max(row.length for row in rows) + 1, passes.capacity)
        # Free slots write into the scratch column, so that their prompts can still be copied.
        places = [(row.next_input, row.length) for row in rows] + [(0, passes.capacity)] * (count - len(rows))
        banned += [[]] * (count - len(rows))
        lists = padded(banned, self._orders.shape[1] - 2, NO_TOKEN)
        fill(self._orders[:count], [[*place, *each] for place, each in zip(places, lists, strict=True)])
        self._graphs.run((count, columns), partial(self._step, count, columns))
        self._answered = {(row.ticket, row.length + 1) for row in rows if row.takes_steps}

    def choices(self, slots: Sequence[int], rows: Sequence[Row]) -> list[Choice]:
        """See ``Steps``."""
        answers = [(row.ticket, row.length) for row in rows]
        pairs = zip(slots, rows, answers, strict=True)
        self._answer([(slot, row) for slot, row, answer in pairs if answer not in self._answered])
        # A row that stops thinking now may need a token at the same position, with other bans.
        self._answered.difference_update(answers)
        if any(row.is_scored or row.sampling.temperature > 0 for row in rows):
            return choices(self._logits[upload(slots, self._logits.device)], rows)
        likeliest = self._likeliest.tolist()
        return [Choice(likeliest[slot], None) for slot in slots]

    def _step(self, count: int, columns: int) -> None:
        """One step of the first ``count`` slots. May be captured, so it must not depend on values on the host."""
        passes, orders = self._passes, self._orders[:count]
        passes.step(orders[:, 0], orders[:, 1], columns)
        logits = passes.head(passes.last[:count])
        ban(logits, orders[:, 2:])
        self._logits[:count] = logits
        self._likeliest[:count] = only_finite(logits.argmax(dim=-1), logits)

    def _answer(self, pairs: Sequence[tuple[int, Row]]) -> None:
        """Computes logits and most probable tokens of slots whose last position was not appended by a step."""
        if not pairs:
            return
        slots = [slot for slot, _ in pairs]
        logits, where = self._passes.logits(slots), upload(slots, self._logits.device)
        ban_for(logits, [row for _, row in pairs])
        self._logits.index_copy_(0, where, logits)
        self._likeliest.index_copy_(0, where, only_finite(logits.argmax(dim=-1), logits))

    def _make_room(self, num_banned: int) -> None:
        """Enlarges W, which changes an address that graphs know."""
        width = self._orders.shape[1] - 2
        if num_banned > width:
            while num_banned > width:
                width *= 2
            self._orders = self._orders.new_zeros(len(self._orders), 2 + width)
            self._graphs.forget()


def row_bucket(count: int, slots: int) -> int:
    """The smallest of ``slots``, half of it, a quarter of it, … (rounded up) that is at least ``count``."""
    size = slots
    while size > 1 and (size + 1) // 2 >= count:
        size = (size + 1) // 2
    return size


def column_bucket(columns: int, capacity: int) -> int:
    """``columns`` rounded up to a multiple of an eighth of ``capacity``, but to at most ``capacity``."""
    unit = max(FEWEST_COLUMNS, rounded_up(capacity, 8 * FEWEST_COLUMNS) // 8)
    return min(rounded_up(columns, unit), capacity)
