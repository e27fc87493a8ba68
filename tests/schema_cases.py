"""Sends the server requests that schemathesis generates from its OpenAPI description; no answer may be a 500.

    python tests/schema_cases.py --cases 2000

They have valid and invalid bodies, headers and paths, for every route. Answers must have a status and a shape that the
description lists. The last line of output is JSON. The exit code is 1 if a request found a fault, or if fewer requests
than requested were made.
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
"""Random cases per route and round, in addition to those that cover the bounds of each field."""
STATUSES = (200, 400, 401, 404, 405, 408, 413, 422, 429, 500, 503, 504)


def run_cases(count: int, folder: Path, examples: int = EXAMPLES) -> dict[str, Any]:
    """Makes rounds with different seeds until there were ``count`` cases or one found a fault; returns the numbers."""
    checkpoint = save_checkpoint(folder / "tiny")
    with serving(checkpoint, key=KEY, options=("--slots", "8", "--load")) as server:
        by_status: dict[str, int] = {}
        faults, output, seed = 0, "", 0
        while sum(by_status.values()) < count and not faults:
            seed += 1
            done = _round(server.url, folder, seed, examples)
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


def _round(url: str, folder: Path, seed: int, examples: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS), "--seed", str(seed)]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(examples), "--continue-on-failure"]
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
