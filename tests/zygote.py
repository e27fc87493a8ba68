"""Starts scripts without paying for their imports: a process that has imported everything, and forks itself.

A fresh Python process needs several seconds to import torch, transformers and DeepSpeed, and the tests start more than
a hundred. The zygote imports them once. For each request it forks a child, which takes the environment, the working
directory and the standard streams of the request, and runs a script as ``python script.py`` would: with the same
``sys.argv``, ``sys.path[0]``, ``__main__``, exit codes, tracebacks and signal handlers, in a session of its own. Tests
reach it through ``launching.py``; ``forked.py`` holds the client.

What differs from a fresh process: the modules are imported already, so variables that libraries read during their
import must have the values that the zygote had (``READ_AT_IMPORT``; other values are refused); all children share one
seed of Python's string hashes; some options of ``config/`` have been read; torch keeps the signatures of functions that
it has inspected; and the process ends without taking its modules apart. Tests about these things start real processes.

``python tests/zygote.py DESCRIPTOR one|many`` is the server, for one test process or many. It ends when its standard
input is closed.
"""

import gc

if __name__ == "__main__":
    # Until everything is imported: see ``conftest.py``.
    gc.disable()

import atexit
import contextlib
import ctypes
import functools
import importlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from forked import MESSAGE_BYTES, ZygoteError

from coconut_ds.distributed.launcher import free_port
from coconut_ds.settings.compose import compose_config, compose_eval_config

PRELOADED = (
    *("deepspeed", "numpy", "safetensors.torch", "torch", "transformers.integrations.deepspeed"),
    *(f"transformers.models.{family}.modeling_{family}" for family in ("gpt2", "llama", "qwen3")),
    *("coconut_ds.evaluate", "coconut_ds.train", "coconut_ds.evaluation.session", "coconut_ds.training.launch"),
    # What the first engine imports.
    *("coconut_ds.distributed.process_group", "setuptools", "torch.utils.serialization.config"),
)
"""Modules that the zygote imports. torch's compiler is not among them: a test checks that training avoids it."""
WHERE_INSTALLED = ("deepspeed.module_inject.auto_ep_layer", "deepspeed.ops.op_builder.all_ops")
"""Modules that only some versions of DeepSpeed have; the first engine imports them."""
FOR_MANY = ("matplotlib.backends.backend_agg", "peft", "serve.app.layout", "serve.launch", "sklearn.linear_model")
"""Modules that a zygote of several test processes also imports, if they are installed. Together they take longer than
what the children of a single test file would save."""
OFTEN_CHOSEN = ([], ["run=demo", "data=modular_sum", "model=gpt2_scratch_tiny", "training=demo"])
"""Options that many scripts choose, in this order."""
READ_AT_IMPORT = (
    *("ATEN_", "CUDA_", "DEEPSPEED_", "DS_", "HF_", "HUGGINGFACE_", "KMP_", "MKL_", "OMP_", "PYTHON", "TORCH"),
    *("TRANSFORMERS_", "XDG_"),
)
"""Beginnings of the names of variables that Python and the libraries read when they start or are imported. Hugging
Face's libraries read ``HOME`` too, for their cache, which is not used offline."""
SET_BY_LIBRARIES = (
    *("HF_HUB_DISABLE_TELEMETRY", "HF_XET_HIGH_PERFORMANCE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRANSFORMERS_VERBOSITY"),
)
"""Exceptions: variables that gradio, lm_eval, scikit-learn, torch and this project's programs set in their own process.
A test process that uses these passes the variables on, although the zygote, and perhaps another test process, has not
set them."""
RANK_PATIENCE_S = 30.0
"""How long ranks may live on after one of them failed and the others got SIGTERM, as under the launcher."""


class Server:
    """Answers requests by forking."""

    def __init__(self, listener: socket.socket, at_import: Mapping[str, str]) -> None:
        self._listener, self._at_import = listener, at_import
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._answer)
        self._selector.register(0, selectors.EVENT_READ, lambda: os._exit(0))
        self._connections: set[socket.socket] = set()

    def run(self) -> dict[str, Any]:
        """Serves until the standard input is closed. Returns only in the children, each with its request."""
        while True:
            for key, _ in self._selector.select():
                request = key.data()
                if request is not None:
                    return request

    def _answer(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
        if not message:
            connection.close()
            return None
        request = json.loads(message)
        try:
            check_environment(request["environment"], self._at_import)
            pid = fork()
        except (OSError, ZygoteError) as error:
            pid, answer = -1, {"error": str(error)}
        else:
            answer = {"pid": pid}
        if pid == 0:
            self._close(connection)
            return {**request, "descriptors": descriptors}
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            self._connections.add(connection)
            descriptor = os.pidfd_open(pid)
            self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._end(pid, descriptor, connection))
        _send(connection, answer)
        return None

    def _close(self, connection: socket.socket) -> None:
        """Closes what a child must not hold."""
        for key in self._selector.get_map().values():
            if key.fd and isinstance(key.fileobj, int):
                os.close(key.fd)
        for each in (*self._connections, connection, self._selector, self._listener):
            each.close()

    def _end(self, pid: int, descriptor: int, connection: socket.socket) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _send(connection, {"status": os.waitpid(pid, 0)[1]})
        self._connections.remove(connection)
        connection.close()


def _send(connection: socket.socket, answer: dict[str, Any]) -> None:
    # A client that is gone does not want its answer.
    with contextlib.suppress(OSError):
        connection.send(json.dumps(answer).encode())


def check_environment(wanted: Mapping[str, str], at_import: Mapping[str, str]) -> None:
    """Raises ``ZygoteError`` if a variable of ``READ_AT_IMPORT`` differs from what the imported libraries have read."""
    wanted = {"DS_ACCELERATOR": "cpu", **wanted}
    for name in sorted(wanted.keys() | at_import.keys()):
        checked = name.startswith(READ_AT_IMPORT) and name not in SET_BY_LIBRARIES
        if checked and wanted.get(name) != at_import.get(name):
            raise ZygoteError(
                f"environment: {name} is {wanted.get(name)!r}, but the zygote imported its libraries with "
                f"{at_import.get(name)!r}; start a real process"
            )


def fork() -> int:
    """``os.fork``, for processes of one thread only: the locks of other threads would stay locked in the child."""
    threads = [Path("/proc/self/task", name, "comm").read_text().strip() for name in os.listdir("/proc/self/task")]
    if len(threads) != 1:
        raise ZygoteError(f"cannot fork with {len(threads)} threads: {', '.join(threads)}")
    return os.fork()


def become(request: dict[str, Any]) -> list[str]:
    """Turns a forked child into the process that was requested; returns its command."""
    os.setsid()
    for number, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        # Python looks whether a file can seek when it opens a stream: those of the zygote belong to another file.
        fresh = open(number, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
        fresh.reconfigure(line_buffering=stream.line_buffering)
        setattr(sys, "stdout" if number == 1 else "stderr", fresh)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    command: list[str] = request["command"]
    return command if request["ranks"] == 1 else become_rank(command, request["ranks"])


def become_rank(command: list[str], ranks: int) -> list[str]:
    """Forks a child for each rank and returns in the children; this process does the work of a launcher.

    The ranks get the variables and the option that ``deepspeed`` gives, and watch this process as they would watch the
    launcher. It has no signal handlers: like the command ``deepspeed``, it dies of SIGTERM and leaves the ranks behind.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_SIZE": str(ranks), "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    running = set()
    for rank in range(ranks):
        pid = fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # The launcher starts `python -u`.
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(write_through=True)
            return [command[0], f"--local_rank={rank}", *command[1:]]
        running.add(pid)
    code = 0
    while running and code == 0:
        pid, status = os.wait()
        running.remove(pid)
        code = os.waitstatus_to_exitcode(status)
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    ends = time.monotonic() + RANK_PATIENCE_S
    while running and time.monotonic() < ends:
        time.sleep(0.05)
        running.discard(os.waitpid(-1, os.WNOHANG)[0])
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(code & 0xFF)


def show_command(command: Sequence[str]) -> None:
    """Makes ``/proc`` show this command as that of this process. The zygote was started with room for it."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    # Fields 48 and 49: where the command line begins and ends in memory.
    begin, end = (int(field) for field in fields[45:47])
    line = b"".join(word.encode() + b"\0" for word in command)
    ctypes.memmove(begin, line[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


def run_as_main(script: str, *arguments: str, options: Sequence[str] = ()) -> NoReturn:
    """Runs a file as ``python script arguments`` does, or a module as ``python -m`` does, and ends this process."""
    show_command([sys.executable, *options, script, *arguments])
    # In a fresh process, all generators have unpredictable seeds. Python reseeds its own one in a child.
    numpy.random.seed()
    torch.default_generator.seed()
    code, interrupted = 1, False
    try:
        if script == "-m":
            sys.argv, sys.path[0] = list(arguments), os.getcwd()
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [script, *arguments], str(Path(script).resolve().parent)
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            main.__file__ = script
            exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)
        code = 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            code = (stop.code or 0) & 0xFF
        else:
            sys.stderr.write(f"{stop.code}\n")
    except BaseException as error:
        # The first frame is this function's.
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        interrupted = isinstance(error, KeyboardInterrupt)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    # Taking all modules apart would take longer than everything else that the fork does.
    os._exit(code)


def main() -> None:
    """The server; in each child, the script."""
    at_import = dict(os.environ)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in (*WHERE_INSTALLED, *(FOR_MANY if sys.argv[2] == "many" else ())):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    # Hydra looks for its plug-ins, and its parser prepares its tables. Files of the same options are not read again.
    for options in OFTEN_CHOSEN:
        compose_config(options)
    compose_eval_config(["checkpoint=any", "data=modular_sum"])
    # The garbage collector of each child would examine all objects of these modules, copying their memory, many times.
    gc.freeze()
    gc.enable()
    # torch inspects the signature of a function of autograd at each call; ZeRO-3 makes ten of these calls for a layer.
    cached = functools.cache(inspect.signature)
    torch.autograd.function.inspect = types.SimpleNamespace(signature=cached)  # type: ignore[attr-defined]
    request = Server(socket.socket(fileno=int(sys.argv[1])), at_import).run()
    run_as_main(*become(request))


if __name__ == "__main__":
    main()
