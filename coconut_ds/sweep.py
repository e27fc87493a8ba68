"""Entry point ``coconut-sweep``, or ``python -m coconut_ds.sweep``; see ``coconut_ds.studies.sweep``."""

import sys

from coconut_ds.cli.common import take_common
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.errors import CoconutError, paths_checked
from coconut_ds.settings.sweep_line import sweep_words


def main(argv: list[str] | None = None) -> int:
    """Runs a sweep, or makes its table.

    Returns the exit code: 0, 1 if a run failed, 2 for an error that the user can fix, 130 after an interruption.
    """
    prepare_streams(outlives_readers=True)
    try:
        with paths_checked():
            words = take_common(sys.argv[1:] if argv is None else argv, "coconut-sweep", sweep_words)
            from coconut_ds.studies.sweep import run

            return run(words)
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
