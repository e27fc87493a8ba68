"""Entry point ``python -m coconut_ds.demo``, which ``make demo`` runs; see ``coconut_ds.studies.demo``."""

from coconut_ds.studies.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
