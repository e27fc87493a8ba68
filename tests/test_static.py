"""The code is formatted and passes the linter and the type checker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


PLUGIN = [
    *("mypy", "--config-file", "../../pyproject.toml", "--explicit-package-bases"),
    *("--cache-dir", "../../.mypy_cache", "coconut_vllm"),
]
"""The plugin of vLLM is a distribution of its own, whose modules import each other without ``serve``. This run
reads what the run before it has found out about torch and transformers from their common cache."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "folder"),
    [(["ruff", "check", "."], ""), (["ruff", "format", "--check", "."], ""), (["mypy"], ""), (PLUGIN, "serve/vllm")],
)
def test_the_tree_is_clean(command, folder):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT / folder,
        env={**os.environ, "MYPYPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
