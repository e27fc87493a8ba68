"""Tables of the GPU check: of one check, with its verdict, and of several cards, for docs/gpu.md."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coconut_ds.errors import DataError
from gpu.report import Found, outcome, verdict
from gpu.runner import SUMMARY

Numbers = dict[str, dict[str, Any]]
"""The numbers of each section, by its name."""

COLUMNS: tuple[tuple[str, Callable[[Numbers], object]], ...] = (
    ("card", lambda n: n["environment"]["device"]),
    ("torch, CUDA", lambda n: f"{n['environment']['versions']['torch']}, {n['environment']['cuda']}"),
    ("bf16 products, TFLOP/s", lambda n: n["environment"]["matrix_tflops_bf16"]),
    ("launch, µs", lambda n: n["environment"]["launch_us"]),
    ("MFU GPT-2 fp32 / TF32 / bf16", lambda n: " / ".join(_mfu(n, f"gpt2 {k}") for k in ("fp32", "tf32", "bf16"))),
    ("MFU Llama-1B bf16 / fused", lambda n: " / ".join(_mfu(n, f"llama_1b bf16{k}") for k in ("", " fused"))),
    ("GPT-2 bf16, tokens/s", lambda n: f"{n['mfu']['gpt2 bf16']['tokens_per_s']:,}"),
    ("generation, problems/s, 32 / 128 / 256 slots", lambda n: _slots(n, "problems_per_s")),
    ("one position, ms", lambda n: _slots(n, "advance_ms")),
    ("demo", lambda n: f"{n['demo']['accuracy']:.1%}"),
    ("ProsQA, epochs/min", lambda n: n["prosqa"]["epochs_per_minute"]),
)
"""The columns of the table of cards: a header, and how to find the value. A missing value is shown as a dash."""
VERDICT = "verdict"


def section_table(sections: Sequence[Found]) -> str:
    """One line per section, what failed or was skipped, and the verdict as the last line."""
    lines = []
    for found in sections:
        passed = sum(check["passed"] for check in found["checks"])
        counts = f"{passed} of {len(found['checks'])} checks passed" if found["checks"] else ""
        lines.append(f"{found['section']:>12}  {outcome(found):<10}  {found['seconds']:6.1f} s  {counts}".rstrip())
        if "reason" in found:
            lines.append(f"{'':>14}ended early: {found['reason']}")
        for check in found["checks"]:
            if not check["passed"]:
                lines.append(f"{'':>14}{check['name']}: found {check['found']}, expected {check['expected']}")
        lines += [f"{'':>14}skipped: {part}: {reason}" for part, reason in found["skipped"].items()]
    skipped = sum(bool(found["skipped"]) for found in sections)
    note = f" ({skipped} of {len(sections)} sections skipped something)" if skipped else ""
    return "\n".join([*lines, f"verdict: {verdict(sections)}{note}"])


def card_table(folders: Sequence[Path]) -> str:
    """A Markdown table with one row per check, for docs/gpu.md.

    Raises:
        DataError: a folder has no results of a check.
    """
    headers = [*(header for header, _ in COLUMNS), VERDICT]
    rows = [_row(folder) for folder in folders]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headers, ["---"] * len(headers), *rows))


def _row(folder: Path) -> list[str]:
    path = folder / SUMMARY
    if not path.is_file():
        raise DataError(f"--table {folder}: found no {SUMMARY}; expected the folder given to --out")
    sections = json.loads(path.read_text(encoding="utf-8"))["sections"]
    numbers = {found["section"]: found["numbers"] for found in sections}
    return [*(_cell(value, numbers) for _, value in COLUMNS), verdict(sections)]


def _cell(value: Callable[[Numbers], object], numbers: Numbers) -> str:
    try:
        return str(value(numbers))
    except KeyError:
        return "–"


def _mfu(numbers: Numbers, case: str) -> str:
    found = numbers["mfu"].get(case)
    if found is None:
        return "–"
    return f"{found['mfu_of_products'] if found['mfu'] is None else found['mfu']:.1%}"


def _slots(numbers: Numbers, key: str) -> str:
    sections = (numbers["generation"].get(f"{slots} slots", {}) for slots in (32, 128, 256))
    return " / ".join(str(found.get(key, "–")) for found in sections)
