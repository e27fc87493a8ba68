"""A forked process is to its caller what a fresh ``python script.py`` is."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked
import launching
import pytest
import zygote

SHOW = """
import json, os, sys, threading
json.dump({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "cwd": os.getcwd(),
    "mark": os.environ.get("MARK"), "rank": os.environ.get("RANK"), "session": os.getsid(0) == os.getpid(),
    "threads": threading.active_count(), "main": sys.modules["__main__"].__name__,
    "variables": sorted(os.environ.keys() - {"COCONUT_TESTS_ZYGOTE"}),
    "command": open("/proc/self/cmdline").read().rstrip("\\0"),
    "changed": getattr(os, "changed", False), "input": sys.stdin.read(),
}, sys.stdout)
os.changed = True
os.environ["MARK"] = "changed"
sys.stderr.write("said\\n")
"""
ENDINGS = {
    "end": "print('out')",
    "zero": "raise SystemExit",
    "code": "import sys; sys.exit(7)",
    "code of more than a byte": "import sys; sys.exit(259)",
    "negative code": "import sys; sys.exit(-1)",
    "words": "import sys; sys.exit('words')",
    "exception": "def f():\n    1 / 0\n\ntry:\n    f()\nexcept Exception as e:\n    raise ValueError('é') from e",
    "syntax": "a = = 2",
    "interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(9)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "at exit": "import atexit; atexit.register(print, 'last', end='')\nprint('first', end='')",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('out'))).start()",
    "own hook": "import sys; sys.excepthook = lambda *error: print(error[0])\n1 / 0",
    "pickle": "import pickle\nclass A: pass\nprint(pickle.loads(pickle.dumps(A())).__class__, __package__, __spec__)",
}


@pytest.fixture(autouse=True, scope="module")
def _forks() -> None:
    if not launching.can_fork():
        pytest.skip("processes are not forked here")


def write(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_script_finds_what_it_would_find_in_a_fresh_process_and_no_trace_of_another_child(tmp_path):
    script = write(tmp_path, SHOW)
    (tmp_path / "elsewhere").mkdir()
    command, options = [sys.executable, str(script), "a", "b c"], {"cwd": tmp_path / "elsewhere"}
    env = launching.environment(MARK="given")
    real = subprocess.run(
        command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, start_new_session=True, **options
    )
    for _ in range(2):
        done = launching.run([script, "a", "b c"], env, **options)
        assert (done.returncode, done.stdout, done.stderr) == (0, real.stdout, real.stderr)
        assert '"mark": "given"' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDINGS)
def test_a_script_ends_as_it_would_in_a_fresh_process(tmp_path, name):
    script, env = write(tmp_path, ENDINGS[name]), launching.environment()
    real = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=env)
    done = launching.run([script], env)
    assert (done.returncode, done.stdout, done.stderr) == (real.returncode, real.stdout, real.stderr)


@pytest.mark.slow
def test_a_module_is_run_by_name():
    done = launching.run(["-m", "json.tool", "--help"], launching.environment())
    real = subprocess.run([sys.executable, "-m", "json.tool", "--help"], capture_output=True, text=True, check=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, real.stdout, "")


@pytest.mark.slow
def test_a_process_can_be_watched_and_killed(tmp_path):
    script = write(tmp_path, "import sys, time\nprint('began', flush=True)\ntime.sleep(60)")
    with launching.start([script], launching.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "began\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
        process.kill()
        assert process.wait(30) == process.poll() == -signal.SIGKILL
        process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        launching.run([script], launching.environment(), timeout=0.2)


@pytest.mark.slow
def test_streams_go_where_the_caller_says(tmp_path):
    script = write(tmp_path, "import sys\nprint('out', flush=True)\nprint('error', file=sys.stderr)")
    with launching.start(
        [script], launching.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout.read() == "out\nerror\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with launching.start([script], launching.environment(), **pipes) as process:
        assert (process.stdout.read(), process.stderr.read()) == ("out\n", "error\n")
    with (tmp_path / "log").open("wb") as log:
        assert launching.start([script], launching.environment(), stdout=subprocess.DEVNULL, stderr=log).wait(30) == 0
    assert (tmp_path / "log").read_text() == "error\n"


RANK = """
import os, signal, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
numbers = [None] * dist.get_world_size()
dist.all_gather_object(numbers, (dist.get_rank(), sys.argv[1:], os.environ["LOCAL_RANK"], os.getppid()))
if dist.get_rank() == 0:
    print(numbers)
dist.destroy_process_group()
what = sys.argv[2]
if what == "fail" and sys.argv[1] == "--local_rank=1":
    sys.exit(5)
if what == "fail":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    time.sleep(60)
"""


@pytest.mark.slow
def test_ranks_meet_and_one_that_fails_ends_the_others(tmp_path):
    script = write(tmp_path, RANK)
    process = launching.start([script, "well"], launching.environment(), 2, stdout=subprocess.PIPE)
    with process:
        expected = [(n, [f"--local_rank={n}", "well"], str(n), process.pid) for n in range(2)]
        assert process.stdout.read() == f"{expected}\n"
    assert process.returncode == 0
    done = launching.run([script, "fail"], launching.environment(), 2)
    assert (done.returncode, done.stderr) == (5, "terminated\n")


@pytest.mark.slow
def test_a_variable_that_imported_libraries_have_read_cannot_be_changed(tmp_path):
    script = write(tmp_path, "")
    with pytest.raises(
        zygote.ZygoteError, match=r"OMP_NUM_THREADS is '2', but the zygote .* '1'; start a real process"
    ):
        launching.run([script], launching.environment(OMP_NUM_THREADS="2"))
    assert launching.run([script], launching.environment(KMP_INIT_AT_FORK="FALSE")).returncode == 0


@pytest.mark.slow
def test_a_process_with_two_threads_does_not_fork(tmp_path):
    text = f"""
import sys, threading, time
sys.path.insert(0, {str(Path(zygote.__file__).parent)!r})
import zygote
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
zygote.fork()
"""
    done = launching.run([write(tmp_path, text)], launching.environment())
    assert done.returncode == 1
    assert "cannot fork with 2 threads: " in done.stderr


@pytest.mark.slow
def test_clients_that_leave_do_not_disturb_the_zygote(tmp_path):
    script = write(tmp_path, "import time; time.sleep(0.2)")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect("\0" + launching.zygote())
    process = launching.start([script], launching.environment())
    process._connection.close()
    process = launching.start([script], launching.environment())
    assert process.wait(30) == 0


def test_a_zygote_that_is_gone_is_an_error_at_once(tmp_path):
    with pytest.raises(zygote.ZygoteError, match="no answer"):
        forked.ForkedProcess("nowhere", [str(tmp_path)], {})
