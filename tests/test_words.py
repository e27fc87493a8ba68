"""The project's prose is plain modern English: some archaic or unclear expressions must not come back."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXPRESSIONS = re.compile(
    r"\brubbish\b|\bnobody\b|\blest\b|\bhas the say\b|\bwas had\b|\bso many\b|\bwhoever\b|\bhindered\b|\bno pastime\b"
    r"|\bmoved on from\b|\bthinks? twice\b|\bas ever\b|\bfor want of\b|\ba line a\b",
    re.IGNORECASE,
)
FOLDERS = ("coconut_ds", "serve", "preprocessing", "benchmarks", "config", "docs", ".ci")
SUFFIXES = (".py", ".md", ".yaml", ".bash", ".conf")


def test_the_prose_has_none_of_these_expressions() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    assert len(files) > 250
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if EXPRESSIONS.search(line)
    ]
    assert found == []
