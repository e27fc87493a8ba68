"""Entry point: ``coconut-plan model=… deepspeed=… gpus=N [key=value …]``: a run's memory on each GPU, before it is run.

Nothing of the model is loaded but its configuration. ``tokens`` says how long sequences are; without it the longest
problems of the training data are laid out. ``--json`` prints the numbers alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Started as a file: Python put this folder on the path, where the project's root belongs.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.distributed.launcher import launched_rank
from coconut_ds.errors import CoconutError, ConfigError
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config, parse_arguments, print_config

USAGE = (
    "coconut-plan [gpus=1] [gpu_memory_gib=80] [tokens=T [targets=N]] [group=option ...] [key=value ...] [--json]\n"
    "  gpus: processes; gpu_memory_gib: of each, to find the largest micro batch; tokens: of a sequence, thoughts and\n"
    "  markers included (default: those of the training data); targets: of them with loss (default: a quarter)"
)
OWN_KEYS = ("gpus", "gpu_memory_gib", "tokens", "targets")


@dataclass(frozen=True)
class Question:
    """What is asked beside the configuration of a run."""

    gpus: int = 1
    gpu_memory_gib: float | None = None
    tokens: int | None = None
    targets: int | None = None

    @classmethod
    def read(cls, given: Sequence[str]) -> "Question":
        """From ``key=value`` each.

        Raises:
            ConfigError: a value is no number above 0, or sequences would be shorter than what they hold.
        """
        values: dict[str, Any] = {}
        for one in given:
            key, _, value = one.partition("=")
            kind = float if key == "gpu_memory_gib" else int
            try:
                values[key] = kind(value)
            except ValueError as error:
                raise ConfigError(f"{key}: found {value!r}, expected a number") from error
            if not values[key] > 0:
                raise ConfigError(f"{key}: found {value}, expected a number above 0")
        question = cls(**values)
        if question.targets is not None and question.tokens is None:
            raise ConfigError("targets: given without tokens; set tokens=T too")
        return question


def main(argv: list[str] | None = None) -> int:
    """Prints the plan. Returns the exit code: 2 for an error to mend."""
    given = sys.argv[1:] if argv is None else argv
    own = [one for one in given if one.split("=", 1)[0] in OWN_KEYS]
    rest = [one for one in given if one not in own and one != "--json"]
    try:
        arguments: argparse.Namespace = parse_arguments(rest, Config, USAGE)
        question = Question.read(own)
        config = compose_config(arguments.overrides, arguments.config_dir)
        if arguments.cfg:
            print_config(config)
            return 0
        # Imported here, so that a wrong command line is refused before torch is loaded.
        from coconut_ds.memory.report import plan_of, plan_table

        plan = plan_of(config, question.gpus, question.gpu_memory_gib, question.tokens, question.targets)
    except CoconutError as error:
        if launched_rank() == 0:
            sys.stderr.write(f"error: {error}\n")
        return 2
    if "--json" in given:
        sys.stdout.write(json.dumps(plan.as_dict()) + "\n")
    else:
        sys.stdout.write(plan_table(plan, config, question.gpus, question.gpu_memory_gib))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
