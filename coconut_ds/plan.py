"""Entry point ``coconut-plan model=… deepspeed=… gpus=N [key=value …]``: estimates the memory of a run on each GPU.

Only the model's configuration is loaded, not its weights. ``tokens`` sets the length of the sequences; without it, the
longest problems of the training data are used. ``--json`` prints only the numbers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Started as a file: Python put this folder on the path, but imports need the project's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.cli.late_imports import late_imports
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.distributed.launcher import launched_rank
from coconut_ds.errors import CoconutError, ConfigError, paths_checked
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config, parse_arguments, print_config

USAGE = (
    "coconut-plan [gpus=1] [gpu_memory_gib=80] [tokens=T [targets=N]] [group=option ...] [key=value ...] [--json]\n"
    "  gpus: number of processes; gpu_memory_gib: memory of each, to find the largest micro batch that fits\n"
    "  tokens: length of a sequence, thoughts and markers included (default: the longest of the training data)\n"
    "  targets: how many of the tokens have loss (default: a quarter)"
)
OWN_KEYS = ("gpus", "gpu_memory_gib", "tokens", "targets")
"""Arguments of this command; all others configure the run."""


@dataclass(frozen=True)
class PlanArguments:
    """The arguments of this command that do not configure the run; see ``memory.report.plan_of``."""

    gpus: int = 1
    gpu_memory_gib: float | None = None
    tokens: int | None = None
    targets: int | None = None

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "PlanArguments":
        """Parses arguments of the form ``key=value``.

        Raises:
            ConfigError: a value is not a number above 0, or ``targets`` is given without ``tokens``.
        """
        values: dict[str, Any] = {}
        for argument in arguments:
            key, _, value = argument.partition("=")
            kind = float if key == "gpu_memory_gib" else int
            try:
                values[key] = kind(value)
            except ValueError as error:
                raise ConfigError(f"{key}: found {value!r}, expected a number") from error
            if not values[key] > 0:
                raise ConfigError(f"{key}: found {value}, expected a number above 0")
        result = cls(**values)
        if result.targets is not None and result.tokens is None:
            raise ConfigError("targets: given without tokens; set tokens=T too")
        return result


def main(argv: list[str] | None = None) -> int:
    """Prints the plan. Returns the exit code: 2 for an error that the user can correct."""
    prepare_streams()
    given = sys.argv[1:] if argv is None else argv
    own = [each for each in given if each.split("=", 1)[0] in OWN_KEYS]
    rest = [each for each in given if each not in own and each != "--json"]
    try:
        with paths_checked():
            arguments: argparse.Namespace = parse_arguments(rest, Config, USAGE, "coconut-plan")
            asked = PlanArguments.read(own)
            config = compose_config(arguments.overrides, arguments.config_dir)
            if arguments.cfg:
                print_config(config)
                return 0
            # Imported here, so that a wrong command line is refused before torch is loaded.
            with late_imports():
                from coconut_ds.memory.report import plan_of, plan_table

            plan = plan_of(config, asked.gpus, asked.gpu_memory_gib, asked.tokens, asked.targets, _show)
    except CoconutError as error:
        if launched_rank() == 0:
            sys.stderr.write(f"error: {error}\n")
        return 2
    if "--json" in given:
        sys.stdout.write(json.dumps(plan.as_dict()) + "\n")
    else:
        sys.stdout.write(plan_table(plan, config, asked.gpus, asked.gpu_memory_gib))
    return 0


def _show(line: str) -> None:
    """Reports progress, since a plan of a large model takes minutes. Only the plan goes to standard output."""
    sys.stderr.write(f"{line} …\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
