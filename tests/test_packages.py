"""Hints about missing packages name commands that work; no package index has this project."""

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest
from imports import ROOT

from coconut_ds import packages
from coconut_ds.errors import ModelError
from coconut_ds.packages import install_line, needs


def test_a_checkout_is_installed_from_its_folder() -> None:
    assert shlex.split(install_line("lora")) == ["pip", "install", "-e", f"{ROOT}[lora]"]


def test_without_a_checkout_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "__file__", str(tmp_path / "coconut_ds" / "packages.py"))
    lines = [
        "torch>=2.6",
        "peft>=0.19; extra == 'lora'",
        'fastapi>=1; extra == "serve"',
        "coconut-ds[serve]; extra == 'ray'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: [*lines, "ray[serve]>=2; extra == 'ray'"])
    assert install_line("lora") == "pip install 'peft>=0.19'"
    assert shlex.split(install_line("ray")) == ["pip", "install", "fastapi>=1", "ray[serve]>=2"]


def test_a_missing_package_is_an_error_with_the_command_and_a_missing_module_of_ours_is_not() -> None:
    with (
        pytest.raises(ModelError, match=r"the package nowhere is missing; install it with: pip install .*\[serve\]"),
        needs("serve"),
    ):
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
    with pytest.raises(ModuleNotFoundError), needs("serve"):
        raise ModuleNotFoundError("No module named 'serve.nowhere'", name="serve.nowhere")


def test_no_text_advises_to_install_this_project_from_an_index() -> None:
    files = [path for folder in ("coconut_ds", "serve", "docs", "tests") for path in (ROOT / folder).rglob("*")]
    texts = {
        path: path.read_text(encoding="utf-8") for path in [*files, *ROOT.glob("*.md")] if path.suffix in (".py", ".md")
    }
    # The file of a wheel is not a name in an index.
    advice = re.compile(r"pip install [^\n]*coconut[-_]ds\b(?!-[\d.]+-py3)")
    assert [str(path) for path, text in texts.items() if advice.search(text)] == []
