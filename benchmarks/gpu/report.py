"""What a section of the GPU check finds, written to a JSON file as it goes, and its outcome."""

import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coconut_ds.files import write_whole

PROGRESS = "» "
"""How the lines of a section's output begin that the user sees while it runs."""
Found = dict[str, Any]
"""The content of a section's file: ``section``, ``finished``, ``seconds``, ``numbers``, ``checks``, ``skipped`` and,
if the section did not finish, ``reason``."""


class Report:
    """The results of one section. Each change is on the disk at once, so a section that is killed loses nothing."""

    def __init__(self, path: Path, section: str) -> None:
        self.path = path
        self._began = time.perf_counter()
        self._found: Found = {
            "section": section,
            "finished": False,
            "seconds": 0.0,
            "numbers": {},
            "checks": [],
            "skipped": {},
        }
        self._write()

    @property
    def numbers(self) -> dict[str, Any]:
        """What ``number`` has recorded."""
        numbers: dict[str, Any] = self._found["numbers"]
        return numbers

    def say(self, text: str) -> None:
        """Shows a line of progress."""
        sys.stdout.write(f"{PROGRESS}{text}\n")
        sys.stdout.flush()

    def number(self, name: str, value: Any) -> None:
        """Records a measurement: a number, a text, or lists and dictionaries of them."""
        self._found["numbers"][name] = value
        self._write()

    def check(self, name: str, passed: bool, found: object, expected: str) -> None:
        """Records whether something is as it must be, and shows it if it is not."""
        self._found["checks"].append({"name": name, "passed": bool(passed), "found": found, "expected": expected})
        if not passed:
            self.say(f"FAILED {name}: found {found}, expected {expected}")
        self._write()

    def skip(self, part: str, reason: str) -> None:
        """Records a part that cannot run here."""
        self._found["skipped"][part] = reason
        self.say(f"{part}: skipped: {reason}")
        self._write()

    def can_run(self, part: str, *modules: str) -> bool:
        """Whether all these modules are installed; if not, records that ``part`` is skipped because it needs them."""
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            self.skip(part, f"needs {', '.join(missing)}")
        return not missing

    def part(self, name: str) -> AbstractContextManager[None]:
        """A part of the section: shows its name. An error in it does not stop the other parts (``guarded``)."""
        self.say(name)
        return self.guarded(name)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Records an error as a failed check; its traceback goes to the section's log."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(f"{name} runs", False, f"{type(error).__name__}: {error}", "no error")

    def finish(self) -> None:
        """Marks the section as complete."""
        self._found["finished"] = True
        self._write()

    def _write(self) -> None:
        self._found["seconds"] = round(time.perf_counter() - self._began, 2)
        write_whole(self.path, json.dumps(self._found, indent=1) + "\n")


def outcome(found: Found) -> str:
    """``failed``: a check failed; ``incomplete``: the section ended early; ``skipped``: nothing could run; else
    ``passed``."""
    if any(not check["passed"] for check in found["checks"]):
        return "failed"
    if not found["finished"]:
        return "incomplete"
    return "passed" if found["checks"] or found["numbers"] or not found["skipped"] else "skipped"


def verdict(sections: Sequence[Found]) -> str:
    """The outcome of the whole check: ``failed``, ``incomplete``, or else ``passed``."""
    outcomes = {outcome(found) for found in sections}
    return next((bad for bad in ("failed", "incomplete") if bad in outcomes), "passed")
