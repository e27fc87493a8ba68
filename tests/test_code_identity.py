"""The identity of the code changes with the commit and the content of the package, and with nothing around it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.runs.code import code_identity

ME = ("-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=")
CONTENT = "first = 1\n" * 20


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *ME, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The git settings of the user must not affect repositories that tests make."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package of a project under git, with everything committed."""
    package = tmp_path / "one" / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(CONTENT)
    (package / "inner" / "ä b.py").write_text("second = 2\n")
    (package / "link.py").symlink_to("a.py")
    (package.parent / "README.md").write_text("read me\n")
    (package.parent / ".gitignore").write_text("*.log\n")
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", "--all")
    git(package, "commit", "--quiet", "--message=first")
    return package


def difference(package: Path) -> str:
    found = code_identity(package)
    assert set(found) == {"commit", "difference"}
    return found["difference"]


def dirty(package: Path) -> None:
    """One file changed, one deleted, one new."""
    (package / "a.py").write_text(CONTENT + "third = 3\n")
    (package / "inner" / "ä b.py").unlink()
    (package / "new ü.py").write_text(CONTENT)


def test_the_code_of_a_checkout_is_its_commit_and_what_differs_in_the_package(package: Path) -> None:
    assert code_identity(package) == {"commit": git(package, "rev-parse", "HEAD"), "difference": ""}
    clean = {path: path.read_text() for path in (package / "a.py", package / "inner" / "ä b.py")}
    seen = {""}
    (package / "new.py").write_text("")
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: (package / "new.py").write_text("x = 1\n"),
        lambda: (package / "new.py").rename(package / "newer.py"),
        lambda: (package / "a.py").write_text("first = 2\n"),
        lambda: (package / "inner" / "ä b.py").unlink(),
        lambda: ((package / "link.py").unlink(), (package / "link.py").symlink_to("inner")),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        found = difference(package)
        seen.add(found)
        assert len(seen) == number
        # Whether the change is staged makes no difference.
        git(package, "add", "--all")
        assert difference(package) == found
    git(package, "reset", "--quiet")
    for path, text in clean.items():
        path.write_text(text)
    git(package, "checkout", "--quiet", "link.py")
    (package / "newer.py").unlink()
    assert difference(package) == ""


def test_files_that_are_not_code_make_no_difference(package: Path) -> None:
    root = package.parent
    (root / "README.md").write_text("changed\n")
    (root / "outputs").mkdir()
    (root / "outputs" / "x.py").write_text("")
    for name in ("run.log", ".hidden.py", "a.py~", "__pycache__/a.pyc", ".cache/a.py"):
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / name).write_text("anything")
    git(package, "init", "--quiet", "clone")
    (package / "clone" / "a.py").write_text("")
    for path in (package / "a.py", package / "__init__.py"):
        os.utime(path, (1, 1))
    assert difference(package) == ""


def test_the_code_is_the_same_wherever_the_checkout_is(package: Path, tmp_path: Path) -> None:
    root = package.parent
    git(root, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    shutil.copytree(root, tmp_path / "deep" / "two", symlinks=True)
    elsewhere = [tmp_path / "tree" / "package", tmp_path / "deep" / "two" / "package"]
    assert [code_identity(each) for each in elsewhere] == [code_identity(package)] * 2
    for each in (package, *elsewhere):
        dirty(each)
    assert difference(package) != ""
    assert [code_identity(each) for each in elsewhere] == [code_identity(package)] * 2
    # A repository around the repository, as for a submodule.
    git(tmp_path, "init", "--quiet")
    assert code_identity(package) == code_identity(elsewhere[1])


@pytest.mark.parametrize("is_dirty", [False, True])
def test_the_code_does_not_depend_on_settings_of_git(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_dirty: bool
) -> None:
    if is_dirty:
        dirty(package)
    before = code_identity(package)
    ignore = tmp_path / "ignore"
    ignore.write_text("*.py\n")
    settings = {
        "diff.external": "false",
        "diff.upper.textconv": "tr a-z A-Z <",
        "diff.renames": "copies",
        "diff.noprefix": "true",
        "diff.context": "9",
        "color.ui": "always",
        "core.quotePath": "false",
        "core.autocrlf": "true",
        "core.fsmonitor": "false",
        "core.abbrev": "40",
        "core.excludesFile": str(ignore),
        "status.showUntrackedFiles": "no",
    }
    for key, value in settings.items():
        git(package, "config", key, value)
    (package.parent / ".git" / "info" / "attributes").write_text("*.py diff=upper\n")
    (package / "__init__.py").touch()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    assert code_identity(package) == before
    # As in a checkout under autocrlf.
    for path in package.rglob("*.py"):
        if not path.is_symlink():
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert code_identity(package) == before


def write_git(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "git").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    "reason", ["no git", "git fails", "another's repository", "no commits", "not tracked", "no repository"]
)
def test_without_an_answer_of_git_the_source_counts(
    reason: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "no git":
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    elif reason == "git fails":
        # For example, because the index is broken.
        wrapper = f'case "$*" in *ls-files*) exit 128;; esac; exec {shutil.which("git")} "$@"'
        monkeypatch.setenv("PATH", write_git(tmp_path / "bin", wrapper), prepend=os.pathsep)
    elif reason == "another's repository":
        wrapper = f'GIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {shutil.which("git")} "$@"'
        monkeypatch.setenv("PATH", write_git(tmp_path / "bin", wrapper), prepend=os.pathsep)
    elif reason == "no commits":
        git(package, "update-ref", "-d", "HEAD")
    elif reason == "not tracked":
        # For example, a virtual environment inside another project.
        shutil.copytree(package, package.parent / ".venv" / "package", symlinks=True)
        package = package.parent / ".venv" / "package"
    else:
        shutil.rmtree(package.parent / ".git")
    found = code_identity(package)
    assert set(found) == {"version", "source"}
    assert found["version"]
    for name in ("notes.txt", ".hidden.py"):
        (package / name).write_text("no code")
    os.utime(package / "a.py", (1, 1))
    shutil.copytree(package, tmp_path / "copy", symlinks=True)
    assert code_identity(tmp_path / "copy")["source"] == found["source"] == code_identity(package)["source"]
    dirty(package)
    assert code_identity(package)["source"] != found["source"]


def test_the_code_of_a_folder_that_is_gone_raises_nothing(tmp_path: Path) -> None:
    assert set(code_identity(tmp_path / "gone")) == {"version", "source"}
