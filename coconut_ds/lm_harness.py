"""Runs lm-evaluation-harness on checkpoints of this project: ``coconut-lm-eval --model coconut --model_args path=…``.

The harness's own command cannot name models from other packages. This command registers the model ``coconut`` (see
``lm_model``) and then calls the harness's command; all options but ``--version`` are those of the harness.
"""

import sys

from coconut_ds.cli.common import versions_line
from coconut_ds.cli.parser import exit_code
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.packages import needs


def main() -> int:
    """Runs the harness's command. Returns the exit code: 2 for an error that the user can correct."""
    prepare_streams()
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{versions_line()}\n")
        return 0
    return exit_code(_run)


def _run() -> None:
    with needs("harness"):
        from coconut_ds.lm_model.model import run_command
    run_command()


if __name__ == "__main__":
    raise SystemExit(main())
