"""Runs the sections of the GPU check, each in a process of its own with its own time limit. Does not import torch."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from coconut_ds.errors import ConfigError
from coconut_ds.files import write_whole
from gpu.report import PROGRESS, Found

WRONG_OPTION = 2
"""Exit code of a section that cannot run with the given options."""
SUMMARY = "summary.json"
"""The file with the results of all sections so far."""


@dataclass(frozen=True)
class Section:
    """One part of the check."""

    name: str
    """Also the name of its module in this package, and of its files in the output folder."""
    limit_s: float
    """Seconds that it may take, at least; it may also use what earlier sections did not."""
    content: str
    """What it does, for ``--help``."""


SECTIONS = (
    Section("environment", 50, "versions, device, speed of products and copies, torch's choice of attention kernels"),
    Section("correctness", 105, "losses, gradients and tokens against the CPU; ZeRO stages, LoRA, offload, resume"),
    Section("mfu", 95, "updates of GPT-2 and Llama-1B: seconds, MFU, launches, share of time the GPU is busy"),
    Section("trace", 35, "which attention kernels run; waits for the GPU and copies per micro batch"),
    Section("generation", 40, "generation with 32, 128 and 256 slots, against the bandwidth of the memory"),
    Section("demo", 90, "accuracy of the demo's coconut"),
    Section("prosqa", 65, "60 updates of ProsQA, extrapolated to epochs per minute"),
)
TOTAL_S = 480.0
"""Seconds that the whole check may take. The limits of the sections add up to it."""


def run_sections(
    sections: Sequence[Section],
    command: Callable[[Section], list[str]],
    out: Path,
    total_s: float,
    show: Callable[[str], object],
) -> list[Found]:
    """Runs the sections one after the other. A section that fails, hangs or is killed does not stop the others.

    Args:
        sections: in the order in which they run.
        command: starts a section, which writes ``out/NAME.json`` (``report.Report``).
        out: folder of the results; gets ``NAME.json`` and ``NAME.log`` of each section, and a summary.
        total_s: seconds for all sections together. A section may also use the time that earlier ones left.
        show: called with each line of progress.

    Returns:
        The results of the sections, also of those that did not finish.

    Raises:
        ConfigError: a section ended with code 2, because an option is wrong for all of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: list[Found] = []

    def left() -> float:
        return total_s - (time.monotonic() - began)

    # With less time than the sections want, each gets its share.
    scale = min(1.0, total_s / sum(section.limit_s for section in sections))
    for number, section in enumerate(sections):
        later = scale * sum(other.limit_s for other in sections[number + 1 :])
        limit = min(max(scale * section.limit_s, left() - later), max(left(), 0.0))
        show(f"{section.name} ({left():.0f} s left; at most {limit:.0f} s): {section.content}")
        # A result of an earlier check must not be taken for one of this check.
        (out / f"{section.name}.json").unlink(missing_ok=True)
        started = time.monotonic()
        reason = _run(command(section), out / f"{section.name}.log", limit, lambda text: show(f"{left():4.0f}  {text}"))
        results.append(_result(section.name, out, reason, time.monotonic() - started))
        write_whole(out / SUMMARY, json.dumps({"sections": results}, indent=1) + "\n")
    return results


def _run(command: list[str], log: Path, limit_s: float, show: Callable[[str], object]) -> str | None:
    """Runs one process and its children. Returns why it ended early, or None."""
    if limit_s <= 0:
        return "no time was left"
    with log.open("w", encoding="utf-8") as file:
        # A process group of its own, so that the section's own child processes end with it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Otherwise lines that were printed before an error would follow its traceback.
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_forward, args=(process.stdout, file, show), daemon=True)
        reader.start()
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after its limit of {limit_s:.0f} s"
        finally:
            _kill_group(process)
            reader.join(10)
            if not reader.is_alive():
                process.stdout.close()
    if code == 0:
        return None
    if code == WRONG_OPTION:
        raise ConfigError(_last_line(log).removeprefix("error: "))
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}: {_last_line(log)}"


def _forward(stream: IO[str], log: IO[str], show: Callable[[str], object]) -> None:
    """Copies a process's output to its log, and shows the lines of progress."""
    for line in stream:
        log.write(line)
        log.flush()
        if line.startswith(PROGRESS):
            show(line.removeprefix(PROGRESS).rstrip("\n"))


def _kill_group(process: "subprocess.Popen[str]") -> None:
    """Ends the process and all its children that are still alive."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    # A process that hangs inside a driver call may outlive this; the next section finds out whether the device answers.
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _result(name: str, out: Path, reason: str | None, seconds: float) -> Found:
    """What a section has written, with the time of its whole process, and with the reason if it ended early."""
    path = out / f"{name}.json"
    found: Found = {"section": name, "finished": False, "seconds": 0.0, "numbers": {}, "checks": [], "skipped": {}}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    if reason is not None or not found["finished"]:
        found |= {"finished": False, "reason": reason or "it ended without finishing its report"}
    found["seconds"] = round(seconds, 1)
    write_whole(path, json.dumps(found, indent=1) + "\n")
    return found
