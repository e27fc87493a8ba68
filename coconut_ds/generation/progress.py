"""Moves rows on between two passes, and ends them.

What belongs to one request is called here: its callbacks, its stop strings and its listener. An exception there makes
this row fail (``Row.failure``), and no other.

Shapes:
    n  thoughts that are computed together
    D  hidden size
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from coconut_ds.errors import ModelError
from coconut_ds.generation.choices import Choice
from coconut_ds.generation.rows import Row
from coconut_ds.generation.sampling import NOT_FINITE
from coconut_ds.generation.slot_passes import SlotPasses
from coconut_ds.generation.slot_table import SlotTable


class Progress:
    """Decides what each row does next."""

    def __init__(self, table: SlotTable, passes: SlotPasses) -> None:
        self._table, self._passes = table, passes

    def after_pass(self, slot: int) -> None:
        """Continues a row after its last position was computed."""
        row = self._table[slot]
        _own(row, lambda: self._set_next_input(slot, row))

    def after_choice(self, slot: int, choice: Choice) -> None:
        """Continues a row with what was chosen for it."""
        row = self._table[slot]
        _own(row, lambda: self._take(slot, row, choice))

    def after_thoughts(self, slot: int, states: Tensor, fed: Tensor) -> None:
        """Continues a row after a pass over all its thoughts; states [n, D] and what the feed makes of them [n, D]."""
        row = self._table[slot]
        if row.failure is None:
            _own(row, lambda: self._read_together(slot, row, states, fed))

    def end_rows(self) -> None:
        """Frees the slots of rows that are finished or have failed, and tells their listeners.

        Raises:
            Exception: the first one that a listener's ``on_failed`` raised; all listeners were called before.
        """
        table = self._table
        ended = [table.free(slot) for slot in table.running if table[slot].has_ended]
        done = [row for row in ended if row.failure is None]
        for row, kept in zip(done, thoughts_on_host(done), strict=True):
            _own(row, lambda row=row, kept=kept: row.end(*kept))  # type: ignore[misc]
        raised: list[Exception] = []
        for row in ended:
            if row.failure is not None:
                try:
                    row.listener.on_failed(row.ticket, row.failure)
                except Exception as error:
                    raised.append(error)
        if raised:
            raise raised[0]

    def _set_next_input(self, slot: int, row: Row) -> None:
        """Decides the input of a row's next position, unless that takes logits; it then stays None until *choose*."""
        row.input = None
        if row.length + (row.num_next_thoughts if row.thinks_at_once else 1) > self._passes.capacity:
            row.finish_reason = "length"
        elif row.thinks_at_once:
            row.think_together(*self._passes.thought(slot))
        elif not row.needs_logits:
            row.follow_script(*self._passes.thought(slot))

    def _take(self, slot: int, row: Row, choice: Choice) -> None:
        if choice.token == NOT_FINITE:
            raise ModelError(
                "the model's numbers for this request are not finite (NaN or infinity), so no token can be chosen; "
                "check the checkpoint's weights, or compute in float32 if the model computes in float16"
            )
        row.num_finite = row.length
        if not row.script:
            row.write(choice.token, choice.score, self._passes.capacity)
            return
        row.stop_thinking_if_end(choice.token)
        if row.script:
            row.follow_script(*self._passes.thought(slot))

    def _read_together(self, slot: int, row: Row, states: Tensor, fed: Tensor) -> None:
        assert row.together is not None
        row.together.read(states, fed)
        if not row.together.num_left:
            row.finish_together()
            self._set_next_input(slot, row)


def _own(row: Row, function: Callable[[], None]) -> None:
    """Runs what belongs to a row; if it raises, this row fails."""
    try:
        function()
    except Exception as error:
        row.failure = error


def thoughts_on_host(rows: Sequence[Row]) -> list[tuple[Tensor | None, Tensor | None]]:
    """For each row, ``thoughts`` and ``fed`` of its ``Completion``; all together are copied to the host at once."""
    found = [state for row in rows for state in (*row.kept_thoughts, *row.kept_fed)]
    copied = torch.stack(found).float().cpu() if found else torch.zeros(0)
    made: list[tuple[Tensor | None, Tensor | None]] = []
    for row in rows:
        count = len(row.kept_thoughts)
        thoughts = copied[:count].clone() if count else torch.zeros(0)
        copied = copied[count:]
        fed = copied[:count].clone() if row.kept_fed else thoughts
        copied = copied[len(row.kept_fed) :]
        made.append((thoughts, fed) if row.request.keep_thoughts else (None, None))
    return made
