"""Cases that schemathesis makes of the server's own description: none may be answered with a 500.

    python tests/schema_cases.py --cases 2000

Valid and invalid bodies, headers and paths for every route. Answers must be of a status and shape that the description
tells. The last line is JSON; the exit code is 1 where a case found a fault, or fewer were made than asked for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving import ROOT, save_checkpoint, serving

KEY = "sesame"
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
EXAMPLES = 25
"""Random cases a route and round, beside those that cover each field's bounds."""
STATUSES = (200, 400, 401, 404, 405, 408, 413, 422, 429, 500, 503, 504)


def run_cases(count: int, folder: Path) -> dict[str, Any]:
    """Rounds with other seeds until ``count`` cases were made or one found a fault; the result."""
    checkpoint = save_checkpoint(folder / "tiny")
    with serving(checkpoint, key=KEY, options=("--slots", "8", "--load")) as server:
        by_status: dict[str, int] = {}
        faults, output, seed = 0, "", 0
        while sum(by_status.values()) < count and not faults:
            seed += 1
            done = _round(server.url, folder, seed)
            faults, output = done.returncode, done.stdout[-6000:] + done.stderr[-2000:]
            before = sum(by_status.values())
            by_status = {str(code): int(server.metric("http_requests_total", status=str(code))) for code in STATUSES}
            assert sum(by_status.values()) > before + 100, output
        result = {
            "cases": sum(by_status.values()),
            "rounds": seed,
            "statuses": {code: number for code, number in by_status.items() if number},
            "faults": faults,
            "output": output if faults else "",
            "slots_held": server.metric("num_requests_running"),
            "exit_code": server.stop(),
        }
    return result


def _round(url: str, folder: Path, seed: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS), "--seed", str(seed)]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--continue-on-failure"]
    command += ["--generation-database", "none", "--request-timeout", "300"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run_cases(arguments.cases, Path(folder))
    sys.stderr.write(result.pop("output"))
    print(json.dumps(result))
    return 0 if not result["faults"] and result["cases"] >= arguments.cases else 1


if __name__ == "__main__":
    sys.exit(main())
