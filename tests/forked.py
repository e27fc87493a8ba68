"""Processes that the zygote forks, with the surface of ``subprocess``: see ``zygote.py``."""

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
MESSAGE_BYTES = 1 << 17
"""Largest request: a command line and an environment."""
COMMAND_BYTES = 8192
"""Longest command line of a forked process that ``/proc`` shows."""
Stream = int | IO[Any] | None


class ZygoteError(RuntimeError):
    """The zygote cannot do what was requested."""


class Zygote:
    """A server process, started by this one, for this test process or for ``many``."""

    def __init__(self, many: bool) -> None:
        self.address = f"coconut-zygote-{os.getpid()}-{secrets.token_hex(4)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind("\0" + self.address)
            listener.listen(64)
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            # Otherwise the memory allocator of Arrow starts a thread when it is loaded.
            environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
            self._server = subprocess.Popen(
                # The blanks are room for the command lines of its children.
                [
                    *(sys.executable, str(HERE / "zygote.py"), str(listener.fileno())),
                    *("many" if many else "one", " " * COMMAND_BYTES),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd=HERE.parent,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """Ends the server. Children that still run are left alone."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


class ForkedProcess:
    """What ``subprocess.Popen([sys.executable, *command], …, start_new_session=True)`` gives, for a forked child.

    Args:
        address: of the zygote.
        command: a script and its arguments.
        ranks: with more than one, the process forks a child for each rank and supervises them, as ``deepspeed`` does.

    Raises:
        ZygoteError: the zygote refuses, or has ended.
    """

    def __init__(
        self,
        address: str,
        command: Sequence[str],
        env: Mapping[str, str],
        ranks: int = 1,
        cwd: Path | str | None = None,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> None:
        self.args = list(command)
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"command": self.args, "environment": dict(env), "cwd": str(cwd or Path.cwd()), "ranks": ranks}
        try:
            self._connection.connect("\0" + address)
            with self._descriptors(stdout, stderr) as descriptors:
                socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)
                self.pid: int = self._receive()["pid"]
        except BaseException as error:
            self._connection.close()
            self._close_pipes()
            if isinstance(error, OSError):
                raise ZygoteError(f"no answer from the zygote: {error}") from error
            raise

    @contextlib.contextmanager
    def _descriptors(self, stdout: Stream, stderr: Stream) -> Iterator[list[int]]:
        """The child's standard input, output and error. The input is empty."""
        with contextlib.ExitStack() as stack:
            null = stack.enter_context(open(os.devnull, "r+b"))
            given = [null.fileno()]
            for number, name, stream in ((1, "stdout", stdout), (2, "stderr", stderr)):
                if stream == subprocess.PIPE:
                    ours, theirs = os.pipe()
                    stack.callback(os.close, theirs)
                    setattr(self, name, os.fdopen(ours))
                    given.append(theirs)
                elif stream == subprocess.STDOUT:
                    given.append(given[1])
                elif stream == subprocess.DEVNULL:
                    given.append(null.fileno())
                else:
                    given.append(number if stream is None else stream if isinstance(stream, int) else stream.fileno())
            yield given

    def _receive(self) -> dict[str, Any]:
        message = self._connection.recv(MESSAGE_BYTES)
        answer: dict[str, Any] = json.loads(message) if message else {"error": "the zygote ended"}
        if "error" in answer:
            raise ZygoteError(answer["error"])
        return answer

    def poll(self) -> int | None:
        """The exit code if the process has ended, else None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits until the process ends; returns its exit code, negative for a signal."""
        if self.returncode is None:
            readable, _, _ = select.select([self._connection], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._connection:
                self.returncode = os.waitstatus_to_exitcode(self._receive()["status"])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "ForkedProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._close_pipes()
        self.wait()

    def _close_pipes(self) -> None:
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def run(
    address: str, command: Sequence[str], timeout: float | None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run(…, capture_output=True, text=True, check=False)`` for a forked child.

    A process that is not done in time is killed with its session.
    """
    # Files instead of pipes: nothing has to be read while the process runs.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = ForkedProcess(address, command, stdout=stdout, stderr=stderr, **options)
        try:
            process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(process.args, process.returncode, *texts)
