"""Scenarios of ``resume_worker.py``: runs whose number of ranks changes, and failures of one of two ranks."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import launching
from resume_disks import one_cannot_write
from resuming import DIES_AT, Outcome, Worker, losses

from coconut_ds.training import engine_state

ZEROS = ("zero0", "zero1", "zero3")
STEADY = [
    "model.model_config_overrides={resid_pdrop: 0, embd_pdrop: 0, attn_pdrop: 0}",
    *("max_latent_stage=1", "batch_size_training=4"),
]
"""Without dropout, which ranks draw differently. An update is two micro batches of one rank, or one of each of two."""


@contextlib.contextmanager
def forked_conversions() -> Iterator[None]:
    """Within it, DeepSpeed's converter, a program of its own, runs in a forked process instead of a real one."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options == {"capture_output": True, "text": True}
        return launching.run(command[1:], os.environ)

    with mock.patch.object(engine_state, "subprocess", SimpleNamespace(run=run)):
        yield


def before(worker: Worker) -> Outcome:
    """Two ranks begin the runs that one process will continue."""
    return {zero: worker.place(f"{zero}_from_two").killed(DIES_AT, f"deepspeed={zero}", *STEADY) for zero in ZEROS}


def other_ranks(worker: Worker) -> Outcome:
    """One process continues what two ranks began, and begins what two ranks will continue."""
    outcomes = {}
    for zero in ZEROS:
        options = [f"deepspeed={zero}", *STEADY]
        alone, from_two, to_two = (worker.place(f"{zero}_{name}") for name in ("alone", "from_two", "to_two"))
        alone.launch(*options)
        # The state of ZeRO-1 is converted by a real process; that of ZeRO-0 needs no conversion.
        with forked_conversions() if zero == "zero3" else contextlib.nullcontext():
            outcome = {**from_two.launch(*options), **from_two.state(), "losses": losses(from_two)}
        outcomes[zero] = {"alone": losses(alone), "from_two": outcome}
        to_two.killed(DIES_AT, *options)
    return outcomes


def after(worker: Worker) -> Outcome:
    """Two ranks continue; both report a record that lost lines, and a disk that only one of them cannot write to."""
    outcomes = {}
    for zero in ZEROS:
        place = worker.place(f"{zero}_to_two")
        with forked_conversions():
            outcome = {**place.launch(f"deepspeed={zero}", *STEADY), **place.state(), "losses": losses(place)}
        outcomes[zero] = outcome
    place = worker.place("short_record_of_two")
    place.killed(DIES_AT)
    if worker.ranks.is_first:
        os.truncate(place.attempt / "metrics.jsonl", 300)
    worker.ranks.wait()
    outcomes["refused"] = worker.ranks.gather(place.launch()["error"])
    outcomes["one cannot write"] = [one_cannot_write(worker, rank) for rank in range(worker.ranks.size)]
    return outcomes
