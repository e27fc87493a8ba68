"""The command of the GPU check: its processes and their time limits, its verdict, and its tables."""

import json
import sys
from pathlib import Path

import pytest
import torch
from imports import ROOT

from coconut_ds.distributed.launcher import process_file
from coconut_ds.errors import ConfigError

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_check
from gpu.report import Report, outcome, verdict
from gpu.runner import SECTIONS, TOTAL_S, Section, run_sections
from gpu.tables import card_table, section_table

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


def test_a_section_that_fails_hangs_or_is_killed_does_not_stop_the_others(tmp_path):
    lines: list[str] = []
    results = run_sections(
        [Section(name, 3.0 if name == "hangs" else 20.0, "content") for name in PROGRAMS],
        lambda section: [sys.executable, "-c", WRITE + PROGRAMS[section.name], section.name, str(tmp_path)],
        tmp_path,
        total_s=123.0,
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
    assert reasons["hangs"] == "stopped after its limit of 3 s"
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


def test_time_that_a_section_did_not_use_goes_to_the_later_ones_and_the_total_is_kept(tmp_path):
    # What an earlier check left must not count.
    (tmp_path / "a.json").write_text('{"finished": true}')
    sections = [Section(name, 10.0, "content") for name in "abc"]
    program = {"a": "", "b": "import time; time.sleep(20)", "c": "import time; time.sleep(20)"}
    results = run_sections(
        sections, lambda section: [sys.executable, "-S", "-c", program[section.name]], tmp_path, 3.0, lambda line: None
    )
    reasons = [found["reason"].removeprefix("stopped after its limit of ") for found in results]
    # Each may use a third of three seconds; ``a`` ended at once and left its second to ``b``.
    assert reasons == ["it ended without finishing its report", "2 s", "1 s"]
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
