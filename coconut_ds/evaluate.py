"""Entry point: ``python coconut_ds/evaluate.py checkpoint=FOLDER data=GROUP_OR_FILE`` or ``coconut-eval``.

Method and number of thoughts come from the checkpoint. Writes ``scores.json`` and ``predictions.jsonl``.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a file: Python put this folder on the path, where the project's root belongs.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.compose import compose_eval_config, parse_arguments, print_config
from coconut_ds.errors import CoconutError
from coconut_ds.settings import EvalConfig

USAGE = "python coconut_ds/evaluate.py checkpoint=FOLDER data=GROUP_OR_FILE [key=value ...]"


def main(argv: list[str] | None = None) -> int:
    """Composes and evaluates. Returns the exit code: 2 for an error to mend."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv, EvalConfig, USAGE)
        config = compose_eval_config(arguments.overrides, arguments.config_dir)
        if arguments.cfg:
            print_config(config)
            return 0
        # Imported here, so that a wrong command line is refused before torch is loaded.
        from coconut_ds.assessment import evaluate

        evaluate(config)
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
