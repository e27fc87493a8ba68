"""Training, validation, generation and probing on the strict device: see ``strict_device/__init__.py``.

All cases run in one process of their own, since torch keeps a device type for the rest of a process.
"""

import json
from pathlib import Path
from xml.etree import ElementTree

import launching
import pytest

FOLDER = Path(__file__).resolve().parent / "strict_device"
SKIPPED = 77
"""The exit code of ``run.py`` where there is no compiler."""
CASES = sorted(file.stem for file in FOLDER.glob("cases_*.py"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the process wrote."""
    out = tmp_path_factory.mktemp("strict_device")
    done = launching.run([FOLDER / "run.py", out], launching.environment(), timeout=600)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    # 1: cases failed, which the tests below report one by one.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_on_the_strict_device(name, results):
    """One of the files ``strict_device/cases_*.py``: ``python tests/strict_device/run.py`` runs them by hand."""
    cases = [
        case
        for case in ElementTree.parse(results / "cases.xml").iter("testcase")
        if case.get("classname", "").endswith(name)
    ]
    faults = [
        f"{case.get('name')}: {fault.get('message')}\n{fault.text}"
        for case in cases
        for fault in case
        if fault.tag in ("failure", "error")
    ]
    assert cases, f"no case of {name} ran"
    assert not faults, "\n\n".join(faults)


@pytest.mark.slow
def test_nearly_all_lines_that_touch_tensors_run_there(results):
    report = json.loads((results / "coverage.json").read_text())
    missing = {name: lines for name, lines in report["missing"].items() if lines}
    assert report["share"] >= 0.95, missing
    assert report["stale"] == [], "remove these entries from coverage.NO_TENSORS"
