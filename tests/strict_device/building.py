"""Compiles ``guard.cpp`` once for each version of torch, with the C++ compiler alone."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("guard.cpp")
BUILDS = Path(__file__).resolve().parents[2] / ".pytest_cache" / "strict_device"
"""Where compiled libraries are kept; git ignores it."""
OPTIONS = ("-std=c++20", "-O0", "-shared", "-fPIC", "-w")


class NoCompiler(RuntimeError):
    """There is no C++ compiler."""


def library() -> Path:
    """The compiled library, compiled first if necessary.

    Raises:
        NoCompiler: there is none, and the library is not compiled yet.
        RuntimeError: the compiler fails; contains its output.
    """
    identity = hashlib.sha256("\n".join([torch.__version__, *OPTIONS, SOURCE.read_text()]).encode()).hexdigest()[:16]
    built = BUILDS / f"guard-{identity}.so"
    if built.is_file():
        return built
    program = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if program is None:
        raise NoCompiler("the strict device needs a C++ compiler (c++, g++ or clang++), and none was found")
    BUILDS.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete, so that processes that compile at the same time do not read each other's parts.
    unfinished = built.with_suffix(f".{os.getpid()}")
    torch_folder = Path(torch.__file__).parent
    places = [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    defined = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    command = [program, *OPTIONS, defined, str(SOURCE), "-o", str(unfinished), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} cannot compile {SOURCE.name}:\n{done.stderr}")
    unfinished.rename(built)
    return built
