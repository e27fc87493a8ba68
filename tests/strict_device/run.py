"""Runs all cases on the strict device in this process, and prints which lines that touch tensors they executed.

``python tests/strict_device/run.py [FOLDER] [options of pytest]``; with a folder, the results are written there:
``cases.xml`` (JUnit) and ``coverage.json``.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SKIPPED = 77
"""Exit code where there is no compiler."""


def main() -> int:
    sys.path[:1] = [str(HERE.parents[1]), str(HERE.parent)]
    os.environ.pop("PYTEST_ADDOPTS", None)
    import pytest

    from strict_device import building
    from strict_device.coverage import Coverage

    try:
        building.library()
    except building.NoCompiler as error:
        print(error, file=sys.stderr)
        return SKIPPED
    out = Path(sys.argv[1]) if sys.argv[1:] and not sys.argv[1].startswith("-") else None
    options = sys.argv[2:] if out else sys.argv[1:]
    cases = [str(file) for file in sorted(HERE.glob("cases_*.py"))]
    options += [f"--junitxml={out / 'cases.xml'}"] if out else []
    # Plug-ins whose modules the models have imported; their assertions do not matter here.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with Coverage() as coverage:
        code = pytest.main([*cases, "-q", "-p", "strict_device.fixtures", "-p", "no:cacheprovider", *options])
    report = coverage.report()
    print(report)
    if out:
        (out / "coverage.json").write_text(json.dumps(report.as_dict()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
