"""The server, except that forward passes sleep while a file exists: ``python tests/hanging_server.py FILE api …``."""

import sys
import time
from pathlib import Path
from typing import Any

from coconut_ds.generation.slot_passes import SlotPasses
from serve.cli import main

extend = SlotPasses.encode


def sleeping(passes: SlotPasses, *arguments: Any, **named: Any) -> None:
    """Encodes prompts once the file is gone."""
    while Path(sys.argv[1]).exists():
        time.sleep(0.1)
    extend(passes, *arguments, **named)


SlotPasses.encode = sleeping  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
