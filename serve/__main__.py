"""``python -m serve``."""

from serve.network.stopping import stopping_at_once

if __name__ == "__main__":
    # Before the first library is imported, since a signal may come at any moment.
    with stopping_at_once():
        from serve.cli import run

        raise SystemExit(run())
