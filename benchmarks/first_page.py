"""Measures how soon ``make app`` answers in a fresh clone of this repository, after its environment has been set up.

    python benchmarks/first_page.py      # the last commit, with the packages of the Python that runs this; no browser

Clones the repository into a temporary folder, gives the clone this environment as its ``.venv``, runs ``make app``
there, and asks the page the first problem of the released checkpoint, as a click on *Think* does. Nothing is trained.
The last line is JSON: seconds from ``make app`` to the page, and to the end of the whole answer; and the CPU time of
all of it, which is close to what it takes on an idle machine.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from visiting_app import Visitor  # noqa: E402


def main() -> None:
    """Runs the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        # A folder of its own, because make compares the time of .ready with those of the clone's files.
        (clone / ".venv").mkdir()
        for part in Path(sys.prefix).iterdir():
            if part.name != ".ready":
                (clone / ".venv" / part.name).symlink_to(part)
        (clone / ".venv" / ".ready").touch()
        found = seconds_to_answer(clone)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(json.dumps({**found, "cpu_s": round(used.ru_utime + used.ru_stime, 1)}))


def seconds_to_answer(clone: Path) -> dict[str, float]:
    """Seconds from ``make app`` to the page, and to the end of an answer on it."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    command = ["make", "--silent", "app", "PORT=0"]
    process = subprocess.Popen(
        command, cwd=clone, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    try:
        address = None
        for line in process.stderr:
            sys.stderr.write(line)
            if found := re.search(r"running on (http://[\d.]+:\d+)", line):
                address = found[1]
                break
        if address is None:
            sys.exit("make app ended before its page was ready")
        visitor = Visitor(address)
        page_s = time.perf_counter() - began
        messages = list(visitor.press("run-think"))
        if not messages[-1]["success"] or "✓ right" not in json.dumps(messages, ensure_ascii=False):
            sys.exit(f"the page did not answer rightly: {str(messages[-1])[:300]}")
        return {"page_s": round(page_s, 1), "answer_s": round(time.perf_counter() - began, 1)}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.stderr.read()
        process.wait(60)


if __name__ == "__main__":
    main()
