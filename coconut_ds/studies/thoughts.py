"""``python -m coconut_ds.probe study``: trains small models and measures whether thoughts encode the steps.

There are two tasks: sums of four digits modulo 10 with one thought per step, and the permutation products of
``make demo`` with two thoughts per step. On each task three models are trained with the same curriculum: with thoughts,
without thoughts, and with pause tokens in place of thoughts. Models that are already trained and measured are skipped,
so the same command continues an interrupted study. Writes ``tables.md``, and JSON, CSV and PNG files for each model.
Nothing is replaced: results with another signature get a folder of their own, whose name ends with it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.files import shell_word, write_whole
from coconut_ds.results import ResultFolder, free_or_own, places_to_read
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.settings.overrides import text_override
from coconut_ds.studies.harness import data_overrides, stored_json, study_identity
from coconut_ds.studies.job import Job
from coconut_ds.studies.jobs import finish_all
from coconut_ds.studies.study import read_study, study_job

METHODS = ("coconut", "no_thoughts", "pause_as_thought")
EXTRA_OVERRIDES = {"modular_sum": ["c_thought=1"], "permutation_product": []}
"""Overrides in addition to those of the task. One thought per step is the simplest case."""
OPTIONS, TABLES = "asked.json", "tables.md"
"""Names of the files with a measurement's options and its tables. The options are written last: their file marks the
measurement as finished."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study from the command line and returns the exit code: 1 if a training run fails."""
    prepare_streams(outlives_readers=True)
    parser = argparse.ArgumentParser(
        prog="python -m coconut_ds.probe study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/probing"))
    parser.add_argument("--tasks", nargs="+", choices=EXTRA_OVERRIDES, default=list(EXTRA_OVERRIDES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lanes", type=int, default=2, help="parallel trainings, one core each (%(default)s)")
    parser.add_argument("--problems", type=int, default=300, help="number of test problems (%(default)s)")
    parser.add_argument("--fit", type=int, default=1000, help="problems to fit the probes on (%(default)s)")
    parser.add_argument("--draws", type=int, default=1, help="draws of noise and of donors per problem (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all trainings")
    options = parser.parse_args(argv)
    identity = study_identity(**{key: value for key, value in vars(options).items() if key not in ("out", "lanes")})
    results = free_or_own(ResultFolder(options.out, identity, (TABLES,)), options.out / "tables")
    study, sweep = read_study("small_tasks")
    sweep = sweep.model_copy(update={"out": str(options.out / "runs")})
    parts = []
    for task in options.tasks:
        more = [*EXTRA_OVERRIDES[task], *options.set]
        chosen = [(method, seed) for seed in options.seeds for method in options.methods]
        jobs = [study_job(study, sweep, task, method, seed, more) for method, seed in chosen]
        done, failed = finish_all(jobs, options.lanes)
        for job, error in failed.items():
            sys.stderr.write(f"error: {job}: {error}\n")
        if failed:
            return 1
        for job in jobs:
            result = done[job]
            parts.append(
                f"## {job.shown.title}: {job.label}, seed {job.seed}\n\n"
                f"Chance {job.shown.chance:.1%}; accuracy on 1,000 test problems {result['accuracy']:.1%}.\n\n"
                + measure_run(job, Path(result["run"]), data_overrides(result["overrides"]), options)
            )
            results.take()
            write_whole(results.path / TABLES, "\n".join(parts))
    sys.stdout.write("\n".join(parts) + f"\n{shell_word(results.path / TABLES)}\n")
    return 0


def measure_run(job: Job, run: Path, data: Sequence[str], options: argparse.Namespace) -> str:
    """Measures one model, writes the results to its folder and returns its tables as Markdown."""
    # Imported here, so that --help does not load torch.
    from coconut_ds.data.sources import open_source
    from coconut_ds.probing.measures import MEASURED, measure_checkpoint, summary, write_measured
    from coconut_ds.probing.parts import KeptParts
    from coconut_ds.reasoner import load_reasoner

    checkpoint = stored_json(run / "summary.json")["last_checkpoint"]
    measured_with = {"checkpoint": checkpoint, "problems": options.problems, "fit": options.fit, "draws": options.draws}
    plain = options.out / job.task / job.label / f"seed_{job.seed}"
    results = free_or_own(ResultFolder(plain, study_identity(**measured_with), (*MEASURED, TABLES, OPTIONS)))
    for out in places_to_read(results, plain):
        if (out / OPTIONS).is_file() and stored_json(out / OPTIONS) == measured_with:
            return (out / TABLES).read_text(encoding="utf-8")
    config = compose_eval_config([text_override("checkpoint", checkpoint), *data, f"seed={job.seed}"])
    source = open_source(config.data, job.seed)
    scored = source.test()[: options.problems]
    known = {problem.question for problem in scored}
    # An epoch number that no training run reaches, so these problems are drawn independently of the training's.
    fit = list({p.question: p for p in source.train(10**6) if p.question not in known}.values())[: options.fit]
    parts = KeptParts(results)
    made = measure_checkpoint(
        load_reasoner(checkpoint), fit, scored, options.draws, job.seed, config.data.max_new_tokens, parts=parts
    )
    with results.replacing() as out:
        write_measured(made, out, f"{job.shown.title}, {job.label}")
        write_whole(out / TABLES, summary(made))
        write_whole(out / OPTIONS, json.dumps(measured_with) + "\n")
    parts.discard()
    return summary(made)
