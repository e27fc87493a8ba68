"""Entry point: ``deepspeed coconut_ds/train.py [overrides]``, ``torchrun …``, ``python …``, or ``coconut-train``.

``--help`` shows the groups and the most used keys, ``--help=GROUP`` and ``--help-all`` the others; ``--cfg job`` prints
the resolved configuration.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script: Python put the package's folder on sys.path; imports need the project's root instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.cli.late_imports import late_imports
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.sources import check_file
from coconut_ds.distributed.interrupts import EXIT_CODE, Interrupted, ignore_signals
from coconut_ds.distributed.last_words import end_with
from coconut_ds.distributed.launcher import is_first_on_machine, launched_rank, launched_ranks
from coconut_ds.errors import CoconutError, paths_checked
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config, parse_arguments, print_config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.trackers import refuse_missing_trackers

USAGE = "deepspeed coconut_ds/train.py [group=option ...] [key=value ...]"


def main(argv: list[str] | None = None) -> int:
    """Composes the configuration, then trains or, with ``run.only_eval``, evaluates.

    Returns the exit code: 0, 2 for an error that the user can fix, or 75 after an interruption.
    """
    prepare_streams(outlives_readers=True)
    try:
        with paths_checked():
            arguments = parse_arguments(sys.argv[1:] if argv is None else argv, Config, USAGE)
            config = compose_config(arguments.overrides, arguments.config_dir)
            if arguments.cfg:
                print_config(config)
                return 0
            _check_early(config)
            _run(config)
    except Interrupted as stop:
        end_with(f"interrupted ({stop}): saved; run the same command to resume\n", launched_rank() == stop.speaker)
        return EXIT_CODE
    except CoconutError as error:
        # One message per machine: a file may be missing on only one of them.
        end_with(f"error{f' (rank {launched_rank()})' if launched_rank() else ''}: {error}\n", is_first_on_machine())
        return 2
    return 0


def _check_early(config: Config) -> None:
    """Reports common mistakes within a second, before torch is imported."""
    if not config.run.only_eval:
        refuse_missing_trackers(config)
        # ``Objective.samples``, which cannot be asked before torch is imported.
        samples = config.objective.reads("grpo")
        BatchGeometry.derive(config.training, launched_ranks(), samples)
        if config.data.kind == "file":
            for key in ("train_path", "val_path"):
                check_file(config.data, key)


def _run(config: Config) -> None:
    # Imported here, so that a wrong command line is reported before torch is imported.
    with late_imports():
        from coconut_ds.distributed.process_group import start_ranks, stop_ranks

        if config.run.only_eval:
            from coconut_ds.evaluation.session import evaluate_config
        else:
            from coconut_ds.training.launch import train

    ranks = start_ranks()
    try:
        if config.run.only_eval:
            evaluate_config(config, ranks)
        else:
            train(config, ranks)
    except Interrupted:
        # Another signal must not change the exit code, 75.
        ignore_signals()
        raise
    finally:
        stop_ranks()


if __name__ == "__main__":
    raise SystemExit(main())
