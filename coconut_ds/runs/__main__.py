"""``python -m coconut_ds.runs``: the same as ``coconut-runs``."""

from coconut_ds.runs.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
