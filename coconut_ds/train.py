"""Entry point: ``deepspeed coconut_ds/train.py [overrides]``, ``torchrun …``, ``python …``, or ``coconut-train``.

``--help`` lists groups and keys, ``--cfg`` prints the resolved configuration.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a file: Python put this folder on the path, where the project's root belongs.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.data.sources import check_file
from coconut_ds.distributed.interrupts import EXIT_CODE, Interrupted
from coconut_ds.distributed.launcher import launched_rank, launched_ranks, speaks_for_machine
from coconut_ds.errors import CoconutError
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config, parse_arguments, print_config
from coconut_ds.training.batches import BatchGeometry

USAGE = "deepspeed coconut_ds/train.py [group=option ...] [key=value ...]"


def main(argv: list[str] | None = None) -> int:
    """Composes, then trains or (``run.only_eval``) evaluates.

    Returns the exit code: 2 for an error to mend, 75 when interrupted.
    """
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv, Config, USAGE)
        config = compose_config(arguments.overrides, arguments.config_dir)
        if arguments.cfg:
            print_config(config)
            return 0
        _check_early(config)
        _run(config)
    except Interrupted as stop:
        sys.stderr.write(f"interrupted ({stop}): saved; the same command carries on\n" if launched_rank() == 0 else "")
        return EXIT_CODE
    except CoconutError as error:
        # One voice a machine: a file may be missing on one of several.
        if speaks_for_machine():
            sys.stderr.write(f"error{f' (rank {launched_rank()})' if launched_rank() else ''}: {error}\n")
        return 2
    return 0


def _check_early(config: Config) -> None:
    """What can be known wrong in the first second, before torch is loaded."""
    if not config.run.only_eval:
        BatchGeometry.derive(config.training, launched_ranks())
        if config.data.kind == "file":
            for key in ("train_path", "val_path"):
                check_file(config.data, key)


def _run(config: Config) -> None:
    # Imported here, so that a wrong command line is refused before torch is loaded.
    from coconut_ds.training.engine import start_ranks, stop_ranks

    ranks = start_ranks()
    try:
        if config.run.only_eval:
            from coconut_ds.evaluation.session import evaluate_config

            evaluate_config(config, ranks)
        else:
            from coconut_ds.training.launch import train

            train(config, ranks)
    finally:
        stop_ranks()


if __name__ == "__main__":
    raise SystemExit(main())
