"""The command of the GPU check: its processes and their time limits, its verdict, and its tables."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_check
import pytest
import torch
from gpu import runner
from gpu.report import Report, outcome, verdict
from gpu.runner import SECTIONS, TOTAL_S, Section, run_sections
from gpu.tables import card_table, section_table
from imports import ROOT
from waiting import wait_until

from coconut_ds.distributed.launcher import process_file
from coconut_ds.errors import ConfigError

WRITE = f"""
import subprocess, sys; sys.path[:0] = [{str(ROOT / "benchmarks")!r}, {str(ROOT)!r}]
from pathlib import Path
from gpu.report import Report
name, out = sys.argv[1:]
report = Report(Path(out) / f"{{name}}.json", name)
report.number("before", 1)
report.say("begun")
"""
PROGRAMS = {
    "hangs": "child = subprocess.Popen(['sleep', '60']); report.number('child', child.pid); child.wait()",
    "well": "report.check('a', True, 1, '1'); report.finish()",
    "crashes": "print('noise'); 1 / 0",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "quits": "sys.exit(0)",
    "differs": "report.check('b', False, 2, '1'); report.finish()",
    "empty": "report.skip('all', 'needs x'); report._found['numbers'].clear(); report.finish()",
}


def test_a_section_that_fails_hangs_or_is_killed_does_not_stop_the_others(tmp_path, monkeypatch):
    lines: list[str] = []
    hangs = tmp_path / "hangs.json"

    class Started(subprocess.Popen):
        """The limit of the section that hangs begins once it hangs: a busy machine takes long to start Python."""

        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(command, **options)
            if "hangs" in command:
                wait_until(lambda: hangs.exists() and "child" in hangs.read_text(), limit_s=60)

    monkeypatch.setattr(subprocess, "Popen", Started)
    results = run_sections(
        [Section(name, 1.0 if name == "hangs" else 60.0, "content") for name in PROGRAMS],
        lambda section: [sys.executable, "-c", WRITE + PROGRAMS[section.name], section.name, str(tmp_path)],
        tmp_path,
        total_s=361.0,
        show=lines.append,
    )
    assert {found["section"]: outcome(found) for found in results} == {
        "well": "passed",
        "crashes": "incomplete",
        "hangs": "incomplete",
        "killed": "incomplete",
        "quits": "incomplete",
        "differs": "failed",
        "empty": "skipped",
    }
    reasons = {found["section"]: found.get("reason") for found in results}
    assert reasons["crashes"] == "exit code 1: ZeroDivisionError: division by zero"
    assert reasons["hangs"] == "stopped after its limit of 1 s"
    # Its own child has ended with it; the system may not have removed it yet.
    state = process_file(results[0]["numbers"].pop("child"), "stat").rpartition(b") ")[2][:1]
    assert state in (b"", b"Z", b"X")
    assert reasons["killed"] == "killed by signal 9"
    assert reasons["quits"] == "it ended without finishing its report"
    # What a section had found by then is kept.
    assert all(found["numbers"] == {"before": 1} for found in results if found["section"] != "empty")
    summary = json.loads((tmp_path / "summary.json").read_text())["sections"]
    assert [found["section"] for found in summary] == list(PROGRAMS)
    assert "noise" in (tmp_path / "crashes.log").read_text()
    assert sum("begun" in line for line in lines) == len(PROGRAMS)
    assert not any("noise" in line for line in lines)
    assert verdict(results) == "failed"
    assert verdict([found for found in results if outcome(found) != "failed"]) == "incomplete"
    assert verdict([found for found in results if outcome(found) in ("passed", "skipped")]) == "passed"
    table = section_table(results)
    assert "b: found 2, expected 1" in table
    assert "skipped: all: needs x" in table
    assert table.endswith("verdict: failed (1 of 7 sections skipped something)")


def test_time_that_a_section_did_not_use_goes_to_the_later_ones_and_the_total_is_kept(tmp_path, monkeypatch):
    # What an earlier check left must not count.
    (tmp_path / "a.json").write_text('{"finished": true}')
    now, limits = 0.0, []

    def run(command: list[str], log: Path, limit_s: float, show: Any) -> str | None:
        nonlocal now
        limits.append(limit_s)
        # The first section ends at once; the others use all their time.
        now += 0.0 if command == ["a"] else limit_s
        return None if command == ["a"] else "stopped"

    monkeypatch.setattr(runner, "_run", run)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: now))
    sections = [Section(name, 10.0, "content") for name in "abc"]
    results = run_sections(sections, lambda section: [section.name], tmp_path, 3.0, lambda line: None)
    # Each may use a third of three seconds; ``a`` left its second to ``b``.
    assert limits == pytest.approx([1.0, 2.0, 1.0])
    assert [found["reason"] for found in results] == ["it ended without finishing its report", "stopped", "stopped"]
    assert sum(section.limit_s for section in SECTIONS) == TOTAL_S <= 480


def test_an_error_in_a_part_is_a_failed_check_and_the_next_part_runs(tmp_path, capsys):
    report = Report(tmp_path / "x.json", "x")
    with report.part("first"):
        raise RuntimeError("on two devices")
    with report.part("second"):
        report.check("right", True, 1, "1")
    report.finish()
    found = json.loads((tmp_path / "x.json").read_text())
    assert [(check["name"], check["passed"]) for check in found["checks"]] == [("first runs", False), ("right", True)]
    assert "Traceback" in capsys.readouterr().err


def test_wrong_options_are_refused(capsys, tmp_path):
    assert gpu_check.main([]) == 2
    assert gpu_check.main(["--table", str(tmp_path)]) == 2
    if not torch.cuda.is_available():
        assert gpu_check.main(["--out", str(tmp_path), "--run-section", "trace"]) == 2
    command = [sys.executable, "-S", "-c", "import sys; print('error: --device'); sys.exit(2)"]
    with pytest.raises(ConfigError, match=r"^--device$"):
        run_sections(SECTIONS, lambda section: command, tmp_path, 10, lambda line: None)
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: --") for line in errors)


def test_the_table_of_cards_has_the_columns_of_the_documentation(tmp_path):
    found = {
        "section": "environment",
        "finished": True,
        "checks": [],
        "skipped": {},
        "numbers": {"device": "NVIDIA H200"},
    }
    (tmp_path / "summary.json").write_text(json.dumps({"sections": [found]}))
    header, _, row = card_table([tmp_path]).splitlines()
    assert row.startswith("| NVIDIA H200 | – |")
    assert row.endswith("| passed |")
    assert header.count("|") == row.count("|")
    assert header in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()
