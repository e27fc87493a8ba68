"""Evaluations for tests that run them as processes: a checkpoint, problems, and what an evaluation has written."""

import json
import subprocess
from pathlib import Path
from typing import Any

import launching
from launching import EVALUATE, environment
from making import make_backbone, make_card

from coconut_ds.model.checkpoint import save_model
from coconut_ds.reasoner import Reasoner


def make_place(folder: Path, problems: int, family: str = "gpt2") -> Path:
    """A folder with a checkpoint, ``model``, and ``data.json``, of whose problems it answers two thirds correctly."""
    backbone = make_backbone(family, seed=5)
    save_model(folder / "model", backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    words = ["1", "2", "3", "+", "="]
    questions = [" ".join(words[n // 5**k % 5] for k in range(5)) for n in range(problems)]
    answers = Reasoner(backbone, make_card(backbone)).generate(questions, n_thoughts=2, max_new_tokens=6)
    items = [
        {"question": question, "steps": ["1"] * (n % 4 + 1), "answer": answer.answer if n % 3 else "none"}
        for n, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    (folder / "data.json").write_text(json.dumps(items))
    return folder


def arguments_of(place: Path, out: Path) -> list[str]:
    """The arguments of an evaluation."""
    return [f"checkpoint={place / 'model'}", f"data={place / 'data.json'}", f"out={out}", "max_new_tokens=6"]


def run_evaluation(arguments: list[str], ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs an evaluation, which must succeed."""
    done = launching.run([str(EVALUATE), *arguments], environment(), ranks, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def predictions(out: Path) -> list[dict[str, Any]]:
    """All predictions, without times."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        del line["latency_s"]
    return lines


def count_kept(out: Path) -> int:
    """Number of predictions that an unfinished evaluation has stored."""
    return sum(path.read_text().count("\n") for path in out.glob(".partial/*/*.jsonl"))
