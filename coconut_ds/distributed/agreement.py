"""Before ranks work together they compare what each was started with, and refuse to start if it differs.

Ranks with other settings, data or code would train together without an error, although only rank 0 records what it
was started with. If all agree, the comparison costs one collective with the hash of a table.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import ConfigError

MOST_SHOWN = 8
"""Largest number of differing entries in the message."""
LONGEST = 60
"""Longest text of a value in the message, in characters."""
ABSENT = "absent"


def refuse_disagreement(ranks: Ranks, table: Callable[[], Mapping[str, Any]]) -> None:
    """Raises on all ranks unless the table is the same on all of them. All ranks call it; one rank alone does nothing.

    Args:
        ranks: all processes.
        table: makes this rank's table: what must be equal, with a name that the user understands. The values are
            plain (as in JSON).

    Raises:
        ConfigError: the tables differ; names the entries, with their values on rank 0 and on the ranks that differ.
    """
    if ranks.size == 1:
        return
    own = {key: json.dumps(value, sort_keys=True, default=str) for key, value in table().items()}
    digest = hashlib.sha256(json.dumps(sorted(own.items())).encode()).digest()
    if ranks.same(digest):
        return
    first = ranks.from_first(own)
    keys = [key for key in {**first, **own} if first.get(key) != own.get(key)]
    # The tables have hundreds of entries, so each rank sends only those in which it differs from rank 0.
    different = ranks.gather({key: own.get(key, ABSENT) for key in keys})
    raise ConfigError(_message(first, different))


def _message(first: Mapping[str, str], different: list[dict[str, str]]) -> str:
    keys = list(dict.fromkeys(key for each in different for key in each))
    lines = [f"  {key}: {_values(key, first, different)}" for key in keys[:MOST_SHOWN]]
    if len(keys) > MOST_SHOWN:
        lines.append(f"  and {len(keys) - MOST_SHOWN} more")
    return "\n".join(
        [
            f"the ranks were not started alike, so nothing was begun: {len(keys)} "
            f"{'entry differs' if len(keys) == 1 else 'entries differ'} from rank 0",
            *lines,
            "start every rank with the same command and environment, the same checkout and packages, and the same "
            "files (docs/clusters.md, Ranks that disagree)",
        ]
    )


def _values(key: str, first: Mapping[str, str], different: list[dict[str, str]]) -> str:
    """The value on rank 0, and each other value with the ranks that have it."""
    others: dict[str, list[int]] = {}
    for rank, each in enumerate(different):
        if key in each:
            others.setdefault(each[key], []).append(rank)
    texts = [f"{_short(value)} on {_ranks(ranks)}" for value, ranks in others.items()]
    return "; ".join([f"{_short(first.get(key, ABSENT))} on rank 0", *texts])


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:4])) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
