"""Kills an evaluation again and again, under one process id, and compares its scores with those of one left alone.

``python tests/kill_evaluations.py --kills 100 --seed 0 --json`` starts a small sweep, kills it with SIGKILL, and starts
the same command again until it is complete; then another one begins. Half of the kills come at random moments: before
the first prediction, between predictions, while results are written and moved. The others come in the middle of the
write of a prediction, after a random share of its line, half of them with zeros behind, as a file system may leave them
after a power failure. All launches have the same host name and process id, as in containers, and are forks of a process
that has loaded the model. The last line of output is one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launching import environment, start
from making import make_backbone, make_card

from coconut_ds.evaluation.report import PNG_END
from coconut_ds.model.checkpoint import save_model

WORKER = Path(__file__).with_name("killed_evaluation.py")
PROBLEMS = 37
BUDGETS = (0, 2)
PATIENCE_S = 120.0


class Evaluations:
    """The launches of one evaluation, in one folder. They are forks of a process that has loaded the model."""

    def __init__(self, folder: Path, problems: int) -> None:
        self.folder, self.launches = folder, 0
        backbone = make_backbone(seed=5)
        save_model(
            folder / "model", backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone)
        )
        words = ["1", "2", "3", "+", "="]
        # A character of several bytes, which a kill can cut in two.
        questions = [" ".join(words[n // 5**k % 5] for k in range(4)) + " é日本" for n in range(problems)]
        items = [{"question": question, "steps": ["1"], "answer": "3"} for question in questions]
        (folder / "data.json").write_text(json.dumps(items))
        pipe = folder / "requests"
        os.mkfifo(pipe)
        asked = (f"checkpoint={folder / 'model'}", f"data={folder / 'data.json'}", "batch_size=5", "max_new_tokens=6")
        budgets = f"n_thoughts={','.join(map(str, BUDGETS))}"
        self.log = folder / "log"
        with self.log.open("w") as log:
            command = [WORKER, pipe, *asked, budgets]
            self._server = start(command, environment(), stdout=subprocess.PIPE, stderr=log)
        # Opened for reading too, so that this does not wait for the other process.
        self._requests = os.fdopen(os.open(pipe, os.O_RDWR), "w", buffering=1)

    def close(self) -> None:
        """Ends the process that makes the launches."""
        self._requests.close()
        self._server.wait(PATIENCE_S)
        assert self._server.stdout is not None
        self._server.stdout.close()

    def launch(self, name: str, when: str = "never", after_s: float | None = None) -> int:
        """Launches the evaluation called ``name``; returns its exit code.

        Args:
            name: of the evaluation.
            when: when it kills itself (``killed_evaluation.py``).
            after_s: seconds after which it is killed; None: never.
        """
        self.launches += 1
        asked = {"out": str(self.folder / name), "when": when, "after_s": after_s}
        self._requests.write(json.dumps(asked) + "\n")
        assert self._server.stdout is not None
        reply = self._server.stdout.readline()
        if reply.strip() not in ("0", str(-signal.SIGKILL)):
            raise SystemExit(f"{name} cannot be continued: {self.log.read_text()}")
        return int(reply)

    def finish(self, name: str) -> float:
        """Launches the evaluation until it is complete. Returns the seconds that it took."""
        began = time.monotonic()
        assert self.launch(name) == 0
        return time.monotonic() - began

    def kept(self, name: str) -> int:
        """Number of complete lines of stored predictions."""
        return sum(path.read_bytes().count(b"\n") for path in (self.folder / name).glob(".partial/*/*.jsonl"))

    def results(self, name: str) -> dict[str, Any]:
        """All files of the results, without times and speeds."""
        out, found = self.folder / name, {}
        for path in sorted(out.rglob("*")):
            text = path.read_text() if path.suffix in (".json", ".jsonl") else ""
            lines = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text]) if line]
            whole = [path.read_bytes().endswith(PNG_END)] if path.suffix == ".png" else []
            found[str(path.relative_to(out))] = whole + [_plain(line) for line in lines]
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key not in ("latency_s", "run", "out", "files")}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def kill(evaluations: Evaluations, draw: random.Random, whole_s: float) -> bool:
    """Launches the evaluation and kills it. Returns whether it was killed; it may have ended before."""
    if draw.random() < 0.5:
        # In the middle of the write of one of the next predictions.
        when = f"write {draw.randint(1, 15)} {draw.random():.4f} {draw.choice((0, 0, 7, 4096))}"
        return evaluations.launch("killed", when) != 0
    return evaluations.launch("killed", after_s=draw.random() * whole_s) != 0


def run_kills(folder: Path, kills: int, seed: int, problems: int = PROBLEMS) -> dict[str, Any]:
    """Makes all kills, and compares the results of each killed evaluation with those of the undisturbed one."""
    draw = random.Random(seed)
    evaluations = Evaluations(folder, problems)
    evaluations.finish("undisturbed")
    whole_s = evaluations.finish("measured")
    expected = evaluations.results("undisturbed")
    done = complete = most = 0
    different: list[str] = []
    while done < kills:
        killed = kill(evaluations, draw, whole_s)
        done += killed
        most = max(most, evaluations.kept("killed"))
        if done == kills:
            evaluations.finish("killed")
        elif killed:
            continue
        complete += 1
        found = evaluations.results("killed")
        different += [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
        (folder / "killed").rename(folder / f"killed_{complete}")
    evaluations.close()
    return {
        "kills": done,
        "launches": evaluations.launches,
        "evaluations": complete,
        "most_kept": most,
        "mismatches": len(different),
        "differences": different[:10],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print only the last line")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = run_kills(Path(folder), options.kills, options.seed)
    if not options.json:
        print(f"{result['kills']} kills, {result['mismatches']} files that differ from those of the undisturbed one")
    print(json.dumps(result))
    return 1 if result["mismatches"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
