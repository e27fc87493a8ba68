"""Ranks that were not started alike: what they say, in one launch for all cases.

    deepspeed --num_accelerators 2 tests/unequal_ranks.py OUT.json FOLDER

``test_agreement_of_ranks.py`` starts it. In each case rank 1 differs in one thing; each rank writes its errors to
``OUT.json.RANK``, and rank 0 also how long a comparison of equal ranks takes.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch_engine import TINY, tiny_config

from coconut_ds.distributed.process_group import start_ranks, stop_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import CoconutError
from coconut_ds.evaluation.session import evaluate, evaluate_config
from coconut_ds.runs import launch_facts
from coconut_ds.runs.code import PACKAGE, source_hashes
from coconut_ds.settings.compose import compose_config, compose_eval_config
from coconut_ds.training import launch
from coconut_ds.training.launch import train

PROBLEM = {"question": "1 + 1", "steps": ["2"], "answer": "2"}


def settings(ranks: Ranks, folder: Path, group: str, **changes: Any) -> None:
    """Rank 1 has another value of a key. (Composing a configuration takes a fifth of a second.)"""
    config = tiny_config()
    changed = getattr(config, group).model_copy(update=changes)
    train(config.model_copy(update={group: changed}) if ranks.rank else config, ranks)


def data(ranks: Ranks, folder: Path) -> None:
    """The files have the same length and other content on rank 1."""
    path = folder / f"problems_{ranks.rank}.json"
    path.write_text(json.dumps([PROBLEM | {"answer": str(3 + ranks.rank)}]))
    kept = [one for one in TINY if not one.startswith(("data", "size"))]
    train(compose_config([*kept, "data=prosqa_file", f"data.train_path={path}", f"data.val_path={path}"]), ranks)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def code(ranks: Ranks, folder: Path) -> None:
    """Rank 1 runs another checkout, in which one file differs."""
    copy = folder / f"checkout_{ranks.rank}" / "coconut_ds"
    shutil.copytree(PACKAGE, copy)
    if ranks.rank:
        (copy / "model" / "loss.py").write_text("LOSS = 1\n")
    with replaced(launch_facts, "source_hashes", partial(source_hashes, copy)):
        train(tiny_config(), ranks)


def library(ranks: Ranks, folder: Path) -> None:
    """Another version of a library on rank 1."""
    with replaced(launch_facts, "_version", lambda name: f"1.{ranks.rank if name == 'tokenizers' else 0}"):
        train(tiny_config(), ranks)


def variable(ranks: Ranks, folder: Path) -> None:
    """An environment variable that only rank 1 has."""
    if ranks.rank:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    try:
        train(tiny_config(), ranks)
    finally:
        os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


def program(ranks: Ranks, folder: Path) -> None:
    """Rank 0 trains, rank 1 evaluates."""
    config = tiny_config()
    if ranks.rank:
        evaluate_config(config, ranks)
    else:
        train(config, ranks)


def evaluation(ranks: Ranks, folder: Path) -> None:
    """An evaluation with another number of thoughts on rank 1."""
    evaluate(compose_eval_config(["checkpoint=none", "data=modular_sum", f"n_thoughts={ranks.rank}"]), ranks)


def loaded(ranks: Ranks, folder: Path) -> None:
    """What is known only after loading: here the hash of the tokenizer."""
    made = launch.run_ingredients
    changed = {"model.tokenizer_content": f"tokenizer {ranks.rank}"}
    with replaced(launch, "run_ingredients", lambda experiment: made(experiment) | changed):
        train(tiny_config(), ranks)


CASES: dict[str, Callable[[Ranks, Path], None]] = {
    "seed": partial(settings, group="run", seed=7),
    "lr": partial(settings, group="training", lr=0.01),
    "resume": partial(settings, group="run", resume_mode="never"),
    "zero": partial(settings, group="deepspeed", config="zero3"),
    "folder": partial(settings, group="run", save_path="other"),
    **{one.__name__: one for one in (data, code, library, variable, program, evaluation, loaded)},
}


def main(out: str, folder: Path) -> None:
    """Runs all cases on all ranks."""
    ranks = start_ranks()
    os.chdir(folder)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            case(ranks, folder)
        except CoconutError as error:
            found[name] = f"{type(error).__name__}: {error}"
        found.setdefault(name, "no error")
    config, seconds = tiny_config(), []
    for _ in range(5):
        ranks.wait()
        began = time.perf_counter()
        launch_facts.refuse_unequal_launch(ranks, "training", config)
        seconds.append(time.perf_counter() - began)
    found["ms"] = round(median(seconds) * 1000, 1)
    Path(f"{out}.{ranks.rank}").write_text(json.dumps(found))
    stop_ranks()


if __name__ == "__main__":
    # The ``deepspeed`` launcher puts an option in front.
    out, folder = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(out, Path(folder))
