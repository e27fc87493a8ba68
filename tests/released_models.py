"""The checkpoints that come with the project, and the tables of their cards."""

from pathlib import Path

RELEASED = Path(__file__).resolve().parent.parent / "examples" / "checkpoints"


def table(name: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of a checkpoint's card, without the table's head."""
    card = (RELEASED / name / "README.md").read_text(encoding="utf-8")
    part = card.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
