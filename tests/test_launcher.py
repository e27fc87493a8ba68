"""The command that starts several processes on this machine."""

import sys
from pathlib import Path

from coconut_ds.distributed import launcher


def test_the_launcher_of_this_python_is_used_as_a_script_or_as_a_module(monkeypatch, tmp_path):
    """Packages installed with ``pip install --target`` have no scripts beside Python."""
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    command = launcher.launcher(2)
    assert command[:5] == [str(python), "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    (tmp_path / "deepspeed").touch()
    assert launcher.launcher(2)[:3] == [str(tmp_path / "deepspeed"), "--num_accelerators", "2"]


def test_the_module_exists():
    import deepspeed

    assert (Path(deepspeed.__file__).parent / "launcher" / "runner.py").is_file()
