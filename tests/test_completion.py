"""Shells complete command lines by the scripts that the programs print."""

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from imports import ROOT

from coconut_ds.cli.completion import script
from coconut_ds.settings import Config
from coconut_ds.settings.completion import words_of_schema
from coconut_ds.settings.compose import option_names
from coconut_ds.settings.schema import leaf_keys
from coconut_ds.settings.sweep_line import sweep_words

METHOD_KEYS = [key for key in leaf_keys(Config) if key.startswith("method.")]


@pytest.fixture(scope="module")
def completing() -> Callable[[str, str], list[str]]:
    """What bash offers after a command line, by the script that the program prints."""
    scripts = {
        name: subprocess.run(
            [sys.executable, "-m", module, "--completion", "bash"], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout
        for name, module in (
            ("coconut-train", "coconut_ds.train"),
            ("coconut-runs", "coconut_ds.runs"),
            ("coconut-serve", "serve"),
        )
    }

    def completing(program: str, line: str) -> list[str]:
        function = f"_{program.replace('-', '_')}"
        call = f"COMP_LINE='{line}'; COMP_POINT={len(line)}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(
            ["bash", "-c", scripts[program] + call],
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.split()

    return completing


@pytest.mark.parametrize(
    ("program", "line", "expected"),
    [
        ("coconut-train", "coconut-train run=demo meth", ["method=", *(f"{key}=" for key in METHOD_KEYS)]),
        ("coconut-train", "coconut-train run=demo method=pause", ["pause", "pause_as_thought"]),
        ("coconut-train", "coconut-train bf16=", ["false", "true"]),
        ("coconut-train", "coconut-train run.resume_mode=n", ["never"]),
        ("coconut-train", "coconut-train --log", ["--log-level="]),
        ("coconut-train", "coconut-train run.name=", []),
        ("coconut-runs", "coconut-runs ver", ["verify"]),
        ("coconut-runs", "coconut-runs list --na", ["--name"]),
        ("coconut-serve", "coconut-serve --ch", ["--checkpoint"]),
        ("coconut-serve", "coconut-serve a", []),
    ],
)
def test_bash_completes_groups_keys_and_values(program, line, expected, completing) -> None:
    assert sorted(completing(program, line)) == sorted(expected)


class Zsh:
    """An interactive zsh in a terminal."""

    def __init__(self, folder: Path) -> None:
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder), "LANG": "C.UTF-8"}
        process, self._terminal = pty.fork()
        if process == 0:
            os.chdir(folder)
            os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
        self._process = process
        self._count = 0

    def run(self, keys: str) -> str:
        """Types keys and Enter. Returns what is printed until the command has ended."""
        self._count += 1
        mark = f"end of {self._count}"
        # The mark is divided, so that the echo of what is typed does not contain it.
        os.write(self._terminal, f"{keys}\nprint 'end' of {self._count}\n".encode())
        printed = b""
        while f"\r\n{mark}\r\n".encode() not in printed:
            printed += os.read(self._terminal, 65536)
        return printed.decode().replace("\r", "")

    def completed(self, line: str) -> str:
        """The command line after Tab and a dot were typed at its end."""
        to_start, to_end = "\x01", "\x05"
        printed = self.run(f"{line}\t.{to_start}print -r -- '<{to_end}>'")
        return printed.rpartition("\n<")[2].partition(">\n")[0]

    def close(self) -> None:
        os.write(self._terminal, b"exit\n")
        os.waitpid(self._process, 0)
        os.close(self._terminal)


@pytest.fixture(scope="module")
def zsh(tmp_path_factory):
    if shutil.which("zsh") is None:
        pytest.skip("no zsh: apt-get install zsh")
    folder = tmp_path_factory.mktemp("zsh")
    scripts = (
        script("zsh", "coconut-train", words_of_schema(Config, option_names())),
        script("zsh", "coconut-sweep", sweep_words()),
    )
    (folder / "scripts").write_text("".join(scripts))
    (folder / "problems.json").touch()
    made = Zsh(folder)
    made.run("source ./scripts")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("coconut-train run=demo meth", "coconut-train run=demo method."),
        ("coconut-train run=demo method=paus", "coconut-train run=demo method=pause."),
        ("coconut-train bf16=t", "coconut-train bf16=true ."),
        ("coconut-train data.train_pa", "coconut-train data.train_path=."),
        ("coconut-train data.train_path=prob", "coconut-train data.train_path=problems.json ."),
        ("coconut-train --cf", "coconut-train --cfg ."),
        ("coconut-sweep study=small", "coconut-sweep study=small_tasks ."),
        ("coconut-sweep start=tor", "coconut-sweep start=torchrun ."),
        ("coconut-sweep -m meth", "coconut-sweep -m method."),
    ],
)
def test_zsh_completes_groups_keys_values_and_files(line, expected, zsh) -> None:
    assert zsh.completed(line) == expected
