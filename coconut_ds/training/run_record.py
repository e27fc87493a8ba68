"""What rank 0 records about a launch: the manifest of the attempt, and its ``metrics.jsonl``."""

import errno
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coconut_ds.distributed.interrupts import Interrupted
from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.runs.attempts import Start
from coconut_ds.runs.fencing import Fence, LostRunError
from coconut_ds.runs.identity import write_ingredients
from coconut_ds.runs.manifest import INTERRUPTED, RunManifest, command_line, now, read_manifest, this_launch
from coconut_ds.settings import Config
from coconut_ds.settings.schema import to_yaml
from coconut_ds.training.claim import Claim
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog, begin_metrics
from coconut_ds.training.mirror_thread import MirrorThread
from coconut_ds.training.problems import Notify
from coconut_ds.training.trackers import Tracked, open_tracker, other_trackers
from coconut_ds.training.versions import versions
from coconut_ds.training.wandb_mirror import open_mirror

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Disk errors that a user can fix."""


@dataclass(frozen=True)
class RunRecord:
    """The open record of a launch; exists on rank 0 only."""

    manifest: RunManifest
    metrics: MetricsLog
    fence: Fence


@contextmanager
def open_record(
    experiment: Experiment, claim: Claim | None, attempt: Path, notify: Notify
) -> Iterator[RunRecord | None]:
    """Opens the record on rank 0; other ranks get None. All ranks call it.

    When the block ends, the status in the manifest becomes ``completed``, or ``failed`` with the reason if the block
    raised.

    Args:
        experiment: what is trained.
        claim: what this launch works on; None on ranks other than 0.
        attempt: the folder of the attempt.
        notify: receives lines for the log.

    Raises:
        ConfigError: wandb was requested and cannot start.
        CheckpointError: the disk is full or read-only, ``metrics.jsonl`` is shorter than the checkpoint says, or
            another launch has taken over the run.
    """
    with _clear_disk_errors(attempt), ExitStack() as stack:

        def begin() -> RunRecord:
            assert claim is not None
            with _clear_disk_errors(attempt), claim.fence.explained():
                return _begin(experiment, claim, notify, stack)

        record = experiment.ranks.on_first(begin)
        if record is None or claim is None:
            yield None
            return
        manifest, path, write = record.manifest, claim.start.folder.manifest, claim.fence.write
        try:
            yield record
            manifest.status, manifest.ended = "completed", now()
            manifest.write(path, write)
        except BaseException as error:
            manifest.status, manifest.ended = "failed", now()
            interrupted = isinstance(error, (Interrupted, KeyboardInterrupt))
            manifest.reason = INTERRUPTED if interrupted else f"{type(error).__name__}: {error}"
            # A full disk may refuse even this; the next launch relies on the checkpoints. If another launch has taken
            # over the run, the manifest is its own.
            with suppress(OSError, LostRunError):
                manifest.write(path, write)
            raise


def _begin(experiment: Experiment, claim: Claim, notify: Notify, stack: ExitStack) -> RunRecord:
    """Writes the files that an attempt has from the start. ``stack`` closes the metrics."""
    config, start, folder, fence = experiment.config, claim.start, claim.start.folder, claim.fence
    manifest = _manifest(experiment, claim, notify)
    fence.make_folder(folder.path)
    with ExitStack() as opened:
        try:
            mirrors = _open_mirrors(config, start, manifest, notify, opened)
        except ConfigError:
            opened.close()
            if start.is_new:
                fence.discard(folder.path)
            raise
        lost = begin_metrics(folder.metrics, start.resume_state.metrics_bytes if start.resume_state else 0, fence)
        if lost is not None:
            notify(f"metrics of updates after the checkpoint were moved to {lost.name}; these updates are repeated")
        if start.is_new:
            write_ingredients(folder.path.parent, claim.ingredients, fence.write)
        fence.write(folder.config, to_yaml(config))
        metrics = stack.enter_context(MetricsLog(folder.metrics, mirrors, notify, lambda: claim.lock.lost))
        # From now on ``stack`` closes the mirrors, with the metrics.
        opened.pop_all()
    manifest.write(folder.manifest, fence.write)
    return RunRecord(manifest, metrics, fence)


def _open_mirrors(
    config: Config, start: Start, manifest: RunManifest, notify: Notify, opened: ExitStack
) -> list[MirrorThread]:
    """Starts wandb and the trackers, and enters the ids of their runs in the manifest. ``opened`` closes them."""
    mirrors: list[MirrorThread] = []
    manifest.wandb_run_id = manifest.wandb_run_id or uuid.uuid4().hex[:8]
    updates = 0 if start.resume_state is None else start.resume_state.position.global_step

    def add(mirror: MirrorThread) -> None:
        mirrors.append(mirror)
        opened.callback(_close_quietly, mirror)

    wandb, line = open_mirror(config, start.path, manifest.wandb_run_id)
    if wandb is not None:
        add(wandb)
    for name in other_trackers(config):
        run = Tracked(config, start.path, manifest.tracked_runs.get(name), updates)
        mirror, manifest.tracked_runs[name] = open_tracker(name, run)
        add(mirror)
    if line:
        notify(line)
    return mirrors


def _close_quietly(mirror: MirrorThread) -> None:
    # The error that ends the launch says what the user can do; trackers' errors have no common base.
    with suppress(Exception):
        mirror.close()


def _manifest(experiment: Experiment, claim: Claim, notify: Notify) -> RunManifest:
    """The manifest of the attempt with this launch added; not written yet."""
    config, ranks, start = experiment.config, experiment.ranks, claim.start
    launch = this_launch(ranks.size, experiment.geometry.describe())
    launch.number = claim.fence.number
    if start.resume_state is not None and start.checkpoint is not None:
        launch.from_checkpoint = start.checkpoint.name
        launch.converted = start.resume_state.world_size != ranks.size
    old = read_manifest(start.folder.manifest)
    launch.note = _note(claim, old, notify)
    if old is None:
        old = RunManifest(
            name=config.run.name,
            signature=start.folder.signature,
            attempt=start.path.name,
            status="running",
            num_epochs=config.training.num_epochs,
            host=launch.host,
            pid=launch.pid,
            world_size=launch.world_size,
            code={},
            versions=versions(),
            started=now(),
            updated=now(),
        )
    code = {key: value for key, value in claim.ingredients.items() if key.startswith("code.")}
    return old.model_copy(
        update={
            "status": "running",
            "reason": None,
            "ended": None,
            "num_epochs": config.training.num_epochs,
            "host": launch.host,
            "pid": launch.pid,
            "world_size": launch.world_size,
            "versions": versions(),
            "code": {key.removeprefix("code."): value for key, value in code.items()},
            "launches": [*old.launches, launch],
            "command": command_line(),
        }
    )


def _note(claim: Claim, old: RunManifest | None, notify: Notify) -> str | None:
    """Describes, for manifest and log, how this launch differs from earlier launches of its attempt."""
    parts = [str(difference) for difference in claim.start.accepted]
    if old is not None:
        here = versions()
        parts += [f"{name}: {there} → {here[name]}" for name, there in old.versions.items() if here.get(name) != there]
    note = "; ".join(parts) or None
    if note:
        notify(f"differs from earlier launches: {note}")
    return note


@contextmanager
def _clear_disk_errors(attempt: Path) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into a message for the user."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise CheckpointError(
            f"{attempt}: could not be written to ({error}); its checkpoints are untouched: make room and start the "
            "same command again"
        ) from error
