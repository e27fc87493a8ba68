"""Writes large answers as JSON piece by piece, so that neither all their values nor all their text exist at once.

The pieces joined are the bytes that ``starlette.responses.JSONResponse`` writes for the same values.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any


def dumps(value: Any) -> str:
    """A value as JSON, in the form of all answers."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def object_of(fields: Mapping[str, Any], written: Mapping[str, str]) -> str:
    """An object as JSON. Fields in ``written`` are JSON already; they keep their place in ``fields``, or come last."""
    parts = {**dict.fromkeys(fields), **written}
    items = (f"{dumps(name)}:{written[name] if name in written else dumps(fields[name])}" for name in parts)
    return f"{{{','.join(items)}}}"


def joined(parts: Iterable[Mapping[str, Any]]) -> str:
    """One object as JSON: each list in it is made of the lists of all parts, and other values are the same in all."""
    lists: dict[str, list[str]] = {}
    others: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            others.setdefault(name, None if isinstance(value, list) else value)
            if isinstance(value, list):
                items = dumps(value)[1:-1]
                lists.setdefault(name, []).extend([items] if items else [])
    return object_of(others, {name: f"[{','.join(items)}]" for name, items in lists.items()})
