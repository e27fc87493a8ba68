"""A visitor of the app without a browser: presses a button through the HTTP routes that the app's page uses.

Needs no torch, so that a process with many visitors starts at once.
"""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx


class Visitor:
    """One visitor of the app at ``URL/app/``."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=f"{url}/app", timeout=600, verify=False)
        self._config = self.client.get("/config").raise_for_status().json()
        self._ids = {
            one["props"]["elem_id"]: one["id"] for one in self._config["components"] if one["props"].get("elem_id")
        }
        self._values = {one["id"]: one["props"].get("value") for one in self._config["components"]}

    def press(self, button: str, **changes: Any) -> Iterator[dict[str, Any]]:
        """Presses a button; yields the messages of the event stream until the handler has ended.

        Args:
            button: the ``elem_id`` of the button.
            changes: values of inputs by their ``elem_id``, with underscores for hyphens; others have their defaults.
        """
        number = self._ids[button]
        event = next(one for one in self._config["dependencies"] if [number, "click"] in map(list, one["targets"]))
        values = {**self._values, **{self._ids[name.replace("_", "-")]: value for name, value in changes.items()}}
        session = secrets.token_hex(8)
        body = {
            "data": [values[one] for one in event["inputs"]],
            "fn_index": event["id"],
            "session_hash": session,
            "trigger_id": number,
        }
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    yield message
                    if message["msg"] == "process_completed":
                        return
