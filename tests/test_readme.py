"""The commands in the README work, and the files and options that it names exist."""

import re
from pathlib import Path

import pytest

from coconut_ds.settings.compose import compose_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading."""
    return README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def configuration_rows() -> list[str]:
    """The overrides in each row of the configuration table."""
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", section("Configurations"), flags=re.MULTILINE)
    assert len(rows) >= 10
    return rows


@pytest.mark.parametrize("row", configuration_rows())
def test_every_row_of_the_table_composes(row):
    config = compose_config(row.split())
    if "load_model_path=P" in row:
        assert config.run.load_model_path == "P"


def test_the_command_lines_compose():
    block = section("Train").split("```")[1]
    commands = re.findall(r"coconut_ds/train\.py((?:\\\n|[^#\n])*)", block)
    assert len(commands) >= 2
    for command in commands:
        compose_config(command.replace("\\\n", " ").split())


def test_the_tree_is_as_described():
    names = re.findall(r"([\w/]+(?:/|\.py))(?=\s)", section("Where things are"))
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "coconut_ds" / name).exists(), name


def test_files_and_targets_that_are_named_exist():
    for name in re.findall(r"(?:preprocessing|docs|tests)/[\w./]+\w", README):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= set(targets)


def test_nothing_is_left_to_fill_in():
    """No line is only a placeholder in capitals."""
    assert not re.findall(r"^[A-Z][A-Z_]+$", README, flags=re.MULTILINE)


def test_it_stays_short():
    """Without the rows of tables, which grow with methods and experiments."""
    assert sum(not line.startswith("|") for line in README.splitlines()) < 260
