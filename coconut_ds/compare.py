"""Entry point ``python -m coconut_ds.compare``; see ``coconut_ds.studies.methods``."""

from coconut_ds.studies.methods import main

if __name__ == "__main__":
    raise SystemExit(main())
