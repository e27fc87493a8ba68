"""Entry point: ``python coconut_ds/evaluate.py checkpoint=FOLDER data=GROUP_OR_FILE`` or ``coconut-eval``.

It can also be started with ``deepspeed`` or ``torchrun``. The checkpoint determines the method and the number of
thoughts; ``n_thoughts=0,1,2`` evaluates each of these numbers instead. The output is predictions, scores and a picture.
``--compare A B`` compares two evaluations of the same problems.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script: Python put the package's folder on sys.path; imports need the project's root instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.cli.late_imports import late_imports
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.distributed.interrupts import EXIT_CODE, Interrupted, ignore_signals
from coconut_ds.distributed.last_words import end_with
from coconut_ds.distributed.launcher import is_first_on_machine, launched, launched_rank
from coconut_ds.errors import CoconutError, paths_checked
from coconut_ds.evaluation.paired import compare_predictions
from coconut_ds.runs.selection import best_checkpoint
from coconut_ds.settings import EvalConfig
from coconut_ds.settings.compose import compose_eval_config, parse_arguments, print_config

USAGE = (
    "python coconut_ds/evaluate.py checkpoint=FOLDER data=GROUP_OR_FILE [key=value ...], or "
    "coconut_ds/evaluate.py --compare PREDICTIONS PREDICTIONS"
)


def main(argv: list[str] | None = None) -> int:
    """Composes the configuration and evaluates.

    Returns the exit code: 0, 2 for an error that the user can fix, or 75 after an interruption.
    """
    prepare_streams(outlives_readers=True)
    given = sys.argv[1:] if argv is None else argv
    try:
        with paths_checked():
            if "--compare" in given:
                sys.stdout.write(_compare(given) + "\n")
                return 0
            arguments = parse_arguments(given, EvalConfig, USAGE, "coconut-eval")
            config = compose_eval_config(arguments.overrides, arguments.config_dir)
            if arguments.cfg:
                print_config(config)
                return 0
            checkpoint, note = best_checkpoint(Path(config.checkpoint))
            if note is not None and launched_rank() == 0:
                sys.stderr.write(f"{note}\n")
            _run(config.model_copy(update={"checkpoint": str(checkpoint)}))
    except Interrupted as stop:
        ignore_signals()
        end_with(f"interrupted ({stop}); run the same command to continue\n", launched_rank() == stop.speaker)
        return EXIT_CODE
    except CoconutError as error:
        end_with(f"error: {error}\n", is_first_on_machine())
        return 2
    return 0


def _compare(given: list[str]) -> str:
    files = [argument for argument in given if not argument.startswith("--")]
    if len(files) != 2:
        raise CoconutError(
            f"--compare: found {len(files)} paths, expected two predictions.jsonl files or their folders"
        )
    return compare_predictions(Path(files[0]), Path(files[1])).text()


def _run(config: EvalConfig) -> None:
    # Imported here, so that a wrong command line is reported before torch is imported.
    with late_imports():
        from coconut_ds.distributed.process_group import start_ranks, stop_ranks
        from coconut_ds.evaluation.session import evaluate

    if not launched():
        evaluate(config)
        return
    ranks = start_ranks()
    try:
        evaluate(config, ranks)
    except Interrupted:
        # Another signal must not change the exit code, 75.
        ignore_signals()
        raise
    finally:
        stop_ranks()


if __name__ == "__main__":
    raise SystemExit(main())
