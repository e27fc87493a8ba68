"""Section ``demo``: trains the demo's ``coconut`` on the device and scores it on 1,000 new problems."""

import os
import tempfile
from functools import partial
from pathlib import Path

from gpu.report import Report
from gpu.workload import TRAINING, Options

LOWEST = 0.95
SMALL = ("num_epochs=1", "size.train=128", "size.valid=8", "size.test=8")


def run(report: Report, options: Options) -> None:
    """Fills the report; skips where the packages for training are missing."""
    if not report.can_run("demo", *TRAINING):
        return
    from coconut_ds.settings.overrides import text_override
    from coconut_ds.studies.demo import TASK
    from coconut_ds.studies.harness import data_overrides, launch_run, score_on_test

    os.environ.setdefault("DS_ACCELERATOR", options.device.type)
    small = SMALL if options.small else ()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *TASK,
            *small,
            "method=coconut",
            "save_every=50",
            "run.wandb=disabled",
            text_override("run.save_path", folder),
        ]
        trained = launch_run("demo", overrides, partial(show, report), start="plain")
        report.number("updates", trained.summary["updates"])
        report.number("stage_switches", trained.summary["stage_switches"])
        report.number("seconds", round(trained.duration_s, 1))
        report.number("updates_per_s", round(trained.summary["updates"] / trained.summary["duration_s"], 1))
        data = ["data=permutation_product", "batch_size=500", *data_overrides(small)]
        accuracy = score_on_test(trained, data, Path(folder) / "evaluation")
    report.number("accuracy", round(accuracy, 4))
    if options.small:
        report.skip("the accuracy", "the demo is too small to learn anything")
    else:
        report.check("accuracy of coconut", accuracy >= LOWEST, f"{accuracy:.1%}", f"at least {LOWEST:.0%}")


def show(report: Report, line: str) -> None:
    """Shows the lines of a training run that tell how far it is."""
    if line.startswith("epoch") or "error" in line.lower():
        report.say(line.rstrip())
    else:
        print(line, end="")
