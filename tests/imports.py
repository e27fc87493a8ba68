"""The import graph of a package, read from its files."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent


PLUGIN = ROOT / "serve" / "vllm"
"""A distribution of its own, whose modules are not part of ``serve``; ``tests/test_serve_layers.py`` checks that."""


def modules(package: str) -> dict[str, Path]:
    """Full names of a package's modules, and their files."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        if path.is_relative_to(PLUGIN):
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Full names of everything that a file imports, imports inside functions included."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    """For each module, those of ``known`` that it imports."""
    return {name: {owner(full, known) for full in imported(path)} - {None, name} for name, path in known.items()}


def owner(full: str, known: dict[str, Path]) -> str | None:
    """The module that holds an imported name (``coconut_ds.settings.Config`` is in ``coconut_ds.settings``)."""
    parts = full.split(".")
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or None


def check_no_cycle(edges: dict[str, set[str]]) -> None:
    """Raises ``graphlib.CycleError``, which names the cycle, if modules import each other in a circle."""
    TopologicalSorter(edges).prepare()


def importers(known: dict[str, Path], package: str) -> set[str]:
    """Modules that import something of an outside package."""
    return {name for name, path in known.items() if any(full.split(".")[0] == package for full in imported(path))}
