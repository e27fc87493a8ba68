"""Runs the ``deepspeed`` launcher so that the processes it starts are forked, without importing everything again.

    python tests/forking_launcher.py .../bin/deepspeed ARGUMENTS

``launching.py`` starts it in a process that the zygote has forked. DeepSpeed's own code runs unchanged, and each
process has the parent and the command line that it has under a real launcher.
"""

import os
import signal
import subprocess
import sys
from typing import Any

import zygote


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts commands of this Python (``python -u …``) by forking, and others as usual."""

    def _execute_child(self, args: Any, *details: Any) -> None:
        if args[0] != sys.executable:
            super()._execute_child(args, *details)  # type: ignore[misc]
            return
        _, _, _, _, cwd, env, _, _, _, *pipes = details
        assert (args[1], cwd, set(pipes[:6])) == ("-u", None, {-1}), details
        self.pid = zygote.fork()
        self._child_created = True
        if self.pid == 0:
            become_child(args[2:], env)


def become_child(command: list[str], env: dict[str, str]) -> None:
    """Runs a command in a child that was just forked."""
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    zygote.run_as_main(*command, options=("-u",))


if __name__ == "__main__":
    subprocess.Popen = ForkingPopen  # type: ignore[misc]
    zygote.run_as_main(*sys.argv[1:])
