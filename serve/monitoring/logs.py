"""The log of the server process: as text or as JSON objects, one a line, and never filled by what clients do."""

import datetime
import json
import logging

from serve.monitoring.throttled import ThrottledLog, ThrottledRecords

ACCESS = "serve.access"
"""Name of the logger that writes one line for each request."""
FIELDS = "fields"
"""Attribute of a log record with the fields of a line, for lines that have more than a message."""


def set_up_logging(as_json: bool) -> None:
    """Makes the process write its log to standard error."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Nothing is added to a log that the program set up before it called ``main``.
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def throttle_others(throttled: ThrottledLog) -> None:
    """Makes uvicorn and asyncio write each kind of warning only once in a while."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(ThrottledRecords(throttled))


class JsonLines(logging.Formatter):
    """Formats each record as a JSON object with ``time`` (UTC), ``level``, ``logger`` and ``message`` or its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        shown: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, FIELDS, None)
        shown.update({"message": record.getMessage()} if fields is None else fields)
        if record.exc_info:
            shown["traceback"] = self.formatException(record.exc_info)
        return json.dumps(shown, ensure_ascii=False)
