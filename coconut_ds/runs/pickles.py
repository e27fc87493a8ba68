"""Pickles in the ``engine/`` of checkpoints that an earlier version has written.

A pickle can name any function, which is called when the file is read: everyone who can write to ``run.save_path`` could
run code as the user who resumes the run. Such checkpoints are refused before one of these files is opened, until
``coconut-runs accept`` has converted them.
"""

import json
from pathlib import Path

from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL, damage, fingerprint, seal_of, shell_word, sync, write_whole
from coconut_ds.runs.folder import ENGINE

SUFFIX = ".pt"


def pickles_of(checkpoint: Path) -> list[Path]:
    """The pickles in the ``engine/`` of a checkpoint."""
    return sorted((checkpoint / ENGINE).rglob(f"*{SUFFIX}"))


def refusal(checkpoint: Path) -> str | None:
    """Why a checkpoint with pickles cannot be resumed from, and what to do; None if it has none."""
    found = pickles_of(checkpoint)
    if not found:
        return None
    return (
        f"{found[0].relative_to(checkpoint)} is a pickle of an earlier version, and reading a pickle can run code; if "
        f"no other user can write to this folder, convert it with: coconut-runs accept {shell_word(checkpoint)}"
    )


def convert_pickles(checkpoint: Path) -> None:
    """Replaces the pickles of a checkpoint by files of the present format. No code of a pickle is run.

    Raises:
        CheckpointError: the checkpoint is damaged, a pickle holds anything but the state of an engine, or the
            checkpoint cannot be written. It is then unchanged, or the same command completes the conversion.
    """
    from coconut_ds.distributed.state_file import SUFFIX as NEW
    from coconut_ds.distributed.state_file import read_pickle, write_state

    values = seal_of(checkpoint)
    if values is None or (found := damage(checkpoint, hashes=True)):
        faults = "; ".join(found[:3]) if values is not None else f"{SEAL} is missing or broken"
        raise CheckpointError(f"{checkpoint}: is damaged: {faults}; only an undamaged checkpoint can be converted")
    try:
        for path in pickles_of(checkpoint):
            name, new = str(path.relative_to(checkpoint)), path.with_suffix(NEW)
            # A file that the manifest does not list is the rest of an earlier conversion.
            if name in values["files"]:
                write_state(read_pickle(path), new)
                sync(new)
                del values["files"][name]
                values["files"][str(new.relative_to(checkpoint))] = fingerprint(new)
        write_whole(checkpoint / SEAL, json.dumps(values, indent=2) + "\n")
        for path in pickles_of(checkpoint):
            path.unlink()
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint}: cannot be written ({error}); make room or correct its permissions, and start the same "
            "command again"
        ) from error
