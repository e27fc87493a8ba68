"""Entry point ``python -m coconut_ds.probe MODE checkpoint=FOLDER …``, or ``coconut-probe``: analyses thoughts.

The modes are ``think``, ``intervene``, ``effects``, ``attention``, ``patch``, ``graph``, and ``study``, which trains
small models and measures all of them. The results are written to a folder as JSON, CSV and PNG files.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script: Python put the package's folder on sys.path; imports need the project's root instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.cli.late_imports import late_imports
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.errors import CoconutError, ConfigError, paths_checked
from coconut_ds.runs.selection import best_checkpoint
from coconut_ds.settings import ProbeConfig
from coconut_ds.settings.compose import compose_probe_config, parse_arguments, print_config
from coconut_ds.settings.probing import MODES

USAGE = (
    f"python -m coconut_ds.probe MODE checkpoint=FOLDER question='…' [key=value ...]; MODE is one of "
    f"{', '.join(MODES)} (default: think), or study (see study --help)"
)


def main(argv: list[str] | None = None) -> int:
    """Composes the configuration and runs the mode. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        with paths_checked():
            if given[:1] == ["study"]:
                from coconut_ds.studies.thoughts import main as study

                return study(given[1:])
            named = bool(given) and "=" not in given[0] and not given[0].startswith("-")
            mode = given.pop(0) if named else "think"
            if mode not in MODES:
                raise ConfigError(f"{mode}: no such mode; expected one of {', '.join(MODES)}, study")
            arguments = parse_arguments(given, ProbeConfig, USAGE, "coconut-probe")
            config = compose_probe_config(mode, arguments.overrides, arguments.config_dir)
            if arguments.cfg:
                print_config(config)
                return 0
            checkpoint, note = best_checkpoint(Path(config.checkpoint))
            if note is not None:
                sys.stderr.write(f"{note}\n")
            # Imported here, so that a wrong command line is rejected before torch is loaded.
            with late_imports():
                from coconut_ds.probing.reports import write_report

            write_report(config.model_copy(update={"checkpoint": str(checkpoint)}))
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
