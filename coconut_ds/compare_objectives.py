"""Entry point ``python -m coconut_ds.compare_objectives``; see ``coconut_ds.studies.objectives``."""

from coconut_ds.studies.objectives import main

if __name__ == "__main__":
    raise SystemExit(main())
