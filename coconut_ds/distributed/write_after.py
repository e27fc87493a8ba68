"""A script: writes a text to standard error once another process has ended. ``last_words`` starts it.

    python -I -S write_after.py DESCRIPTOR SECONDS

It reads the text from standard input. DESCRIPTOR refers to the process (``pidfd_open``), SECONDS is how long to wait at
most. It needs only the standard library, so that it starts at once.
"""

import os
import select
import sys


def main() -> None:
    """Reads the text, detaches itself from its parent, waits and writes."""
    process, seconds = int(sys.argv[1]), float(sys.argv[2])
    text = sys.stdin.buffer.read()
    # A launcher terminates the descendants of its ranks; an orphan is not among them.
    if os.fork():
        os._exit(0)
    select.select([process], [], [], seconds)
    sys.stderr.buffer.write(text)


if __name__ == "__main__":
    main()
