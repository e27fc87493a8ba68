"""What is recorded of each request, for the access log and for traces. Neither contains a prompt, a text or a key."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from serve.api.prefix import App, Message, Receive, Scope, Send
from serve.engine.jobs import Times
from serve.monitoring.logs import ACCESS, FIELDS
from serve.requests.continuations import Choice

log = logging.getLogger(ACCESS)
MAX_CHARACTERS = 256
"""Characters of a path or a model's name that are recorded."""


@dataclass
class Record:
    """One request."""

    method: str
    path: str
    """Without the query, which may have a prompt in links to the app."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    began: float = field(default_factory=time.perf_counter)
    """Seconds of ``time.perf_counter``, like ``ended`` and ``times``."""
    ended: float = 0.0
    request_id: str = ""
    client: str | None = None
    """None: the request was refused before it was known who sends it."""
    address: str | None = None
    """The network address that sent it, as far as proxies are trusted."""
    status: int | None = None
    """None: the client left before there was an answer."""
    is_whole: bool = False
    """Whether the whole answer was sent."""
    model: str | None = None
    tokens: int = 0
    """Tokens generated, of completions that ended."""
    thoughts: int = 0
    times: list[Times] = field(default_factory=list)
    """Of each completion that ended."""

    def add(self, choices: Sequence[Choice]) -> None:
        """Notes completions that ended."""
        self.tokens += sum(len(one.completion.tokens) for one in choices)
        self.thoughts += sum(one.completion.num_thoughts for one in choices)
        self.times += [one.times for one in choices]

    def fields(self) -> dict[str, Any]:
        """The fields of a line of the access log."""
        return {
            "id": self.request_id,
            "client": self.client,
            "address": self.address,
            "method": self.method,
            "path": self.path,
            "model": self.model,
            "status": self.status,
            "complete": self.is_whole,
            "seconds": round(self.ended - self.began, 4),
            "tokens": self.tokens,
            "thoughts": self.thoughts,
        }


def record_of(request: Request) -> Record:
    """The record of a request that is being answered."""
    record = request.state.record
    assert isinstance(record, Record)
    return record


class Records:
    """ASGI middleware that makes a record of each request, and hands it on when the request has ended."""

    def __init__(self, app: App, receivers: Sequence[Callable[[Record], None]]) -> None:
        """``receivers``: called with each record."""
        self._app, self._receivers = app, receivers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(scope["method"], str(scope["path"])[:MAX_CHARACTERS], scope["headers"])
        state = scope.setdefault("state", {})
        state["record"] = record

        async def watched(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                record.status = message["status"]
            elif message["type"] == "http.response.body":
                record.is_whole = not message.get("more_body", False)

        try:
            await self._app(scope, receive, watched)
        finally:
            record.ended = time.perf_counter()
            record.request_id = state.get("request_id", "")
            record.address = state.get("address")
            record.client = state["client"].name if "client" in state else None
            for receiver in self._receivers:
                receiver(record)


def write(record: Record) -> None:
    """Writes a request to the access log."""
    fields = record.fields()
    text = " ".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
    log.info("%s", text, extra={FIELDS: fields})
