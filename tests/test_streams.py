"""Output never ends a program: characters that the encoding lacks, readers that have gone, streams that are closed."""

import io
import os
import pty
import subprocess
import sys
import tomllib
from importlib import import_module
from inspect import getsource
from pathlib import Path

import pytest
from launching import environment

from coconut_ds.cli.streams import prepare_streams

ROOT = Path(__file__).resolve().parent.parent
TEXT = "λ → “é”\n"
SCRIPT = f"""
import sys
from coconut_ds.cli.streams import prepare_streams
prepare_streams(outlives_readers=True)
prepare_streams(outlives_readers=True)
sys.stdin.read()
for _ in range(5000):
    print({TEXT!r} * 10)
sys.stdout.flush()
sys.stderr.write("end\\n")
"""


def start(script: str, *options: str, stdout: int, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *options, "-c", script],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(**variables),
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_characters_that_the_encoding_lacks_are_escaped(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    # pytest's stream for the other one has no descriptor, which must not matter.
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    prepare_streams()
    # The last character is how Python represents a byte of a file name that is not UTF-8.
    sys.stdout.write(TEXT + "\udcff")
    sys.stdout.flush()
    assert written.getvalue() == (TEXT + "\udcff").encode(encoding, "backslashreplace")


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_program_goes_on_when_its_reader_has_gone(options):
    reader, writer = os.pipe()
    process = start(SCRIPT, *options, stdout=writer)
    os.close(writer)
    os.close(reader)
    assert (process.communicate(b"")[1], process.returncode) == (b"end\n", 0)


def test_a_program_goes_on_when_its_terminal_is_closed_and_writes_all_of_it_until_then():
    controller, terminal = pty.openpty()
    script = SCRIPT.replace("sys.stdin.read()", f"print({TEXT!r} * 200, flush=True); sys.stdin.read()")
    process = start(script, stdout=terminal, PYTHONIOENCODING="ascii")
    os.close(terminal)
    found = b""
    while found.count(b"\n") < 201:
        found += os.read(controller, 1 << 16)
    assert found.count(rb"\u03bb \u2192 \u201c\xe9\u201d") == 200
    os.close(controller)
    assert (process.communicate(b"")[1], process.returncode) == (b"end\n", 0)


def test_a_program_whose_streams_are_closed_prints_into_nothing(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    prepare_streams(outlives_readers=True)
    print(TEXT)
    sys.stderr.write(TEXT)
    for stream in (sys.stdout, sys.stderr):
        stream.close()


def test_a_configuration_is_printed_in_ascii():
    done = subprocess.run(
        [sys.executable, ROOT / "coconut_ds" / "train.py", "run.project=é→", "--cfg", "job"],
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii", LC_ALL="C"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"project: \xe9\u2192" in done.stdout


def test_every_program_prepares_its_streams_first():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    names = {script.partition(":")[0] for script in scripts if script.startswith("coconut_ds.")}
    mains = [import_module(name).main for name in sorted(names)]
    mains.append(import_module("serve.cli").main)
    mains += [import_module(f"coconut_ds.studies.{name}").main for name in ("demo", "grpo", "thoughts")]
    texts = [getsource(main) for main in mains]
    texts += [path.read_text() for path in (ROOT / "preprocessing").glob("*.py") if "def main(" in path.read_text()]
    assert len(texts) >= 15
    for text in texts:
        assert text.partition("def main(")[2].partition('"""\n    ')[2].startswith("prepare_streams("), text[:300]
