"""Runs DeepSpeed's converter on the state of an engine: ``python -m coconut_ds.training.convert_state FROM TO``.

The converter is a program that expects pickles under DeepSpeed's names and runs their code. Here it finds links under
these names, and reads files of ``distributed.state_file`` through them.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coconut_ds.distributed.state_file import SUFFIX, loading_no_code
from coconut_ds.distributed.zero import convert_to_universal


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    source, target = map(Path, sys.argv[1:] if argv is None else argv)
    # The folder belongs to this user alone, so no other user can put another file in the place of a link.
    with tempfile.TemporaryDirectory() as links, loading_no_code():
        for path in source.glob(f"*{SUFFIX}"):
            (Path(links) / path.name).with_suffix(".pt").symlink_to(path.resolve())
        convert_to_universal(Path(links), target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
