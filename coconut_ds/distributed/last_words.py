"""Writes the message with which a rank ends so that it is the last thing that the user sees.

When a rank ends with an exit code other than 0, its launcher reports that as well: ``deepspeed`` prints the whole
command of the rank, ``torchrun`` a traceback and a summary. Neither can be switched off from within a rank.

* Under ``deepspeed`` a separate process (``write_after``) writes the message as soon as the process that started the
  rank has ended. The command that the user typed ends a moment later.
* ``torchrun`` ends its summary with what a rank left in a file, so the message goes there too.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress

from coconut_ds.distributed import write_after
from coconut_ds.distributed.interrupts import ignore_signals
from coconut_ds.distributed.launcher import deepspeed_launcher

PATIENCE_S = 120.0
"""Longest time to wait for the launcher's end. It gives other ranks 30 seconds each to end."""
FIRST_RANK_S = 1.0
"""How long ranks without a message stay, in seconds: once one has ended, the launcher terminates all."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable with the path of the file that ``torchrun`` reads when a rank has failed."""


def end_with(text: str, writes: bool) -> None:
    """Writes a message to standard error, if possible after everything that the launcher will write.

    The process is expected to end right afterwards, with an exit code other than 0.

    Args:
        text: whole lines.
        writes: whether this rank writes the message; the others write nothing, but let it end first.
    """
    # torchrun shows what the rank that failed first has left, which may be any rank.
    _tell_torchrun(text)
    launcher = deepspeed_launcher()
    if not writes:
        if launcher is not None:
            time.sleep(FIRST_RANK_S)
        return
    sys.stderr.flush()
    if launcher is None or not _leave_to_a_process(text, launcher):
        sys.stderr.write(text)


def _leave_to_a_process(text: str, launcher: int) -> bool:
    """Starts a process that writes the text once the launcher has ended; returns whether it started."""
    # Another rank may have ended already, and the launcher then terminates this one, which has to finish first. The new
    # process inherits that these signals are ignored, so Ctrl-C and a closed terminal do not end it either.
    ignore_signals()
    try:
        descriptor = os.pidfd_open(launcher)
    except (AttributeError, OSError):
        # The system has no such call, or the launcher is gone and writes nothing more.
        return False
    # -I and -S: the script depends neither on this environment's packages nor on its variables.
    command = [sys.executable, "-I", "-S", write_after.__file__, str(descriptor), str(PATIENCE_S)]
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "backslashreplace"),
            stdout=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            check=False,
        )
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return done.returncode == 0


def _tell_torchrun(text: str) -> None:
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    message = {"message": text.rstrip("\n"), "extraInfo": {"timestamp": str(int(time.time()))}}
    # If the file cannot be written, the message is still on standard error.
    with suppress(OSError), open(path, "w", encoding="utf-8") as file:
        json.dump({"message": message}, file)
