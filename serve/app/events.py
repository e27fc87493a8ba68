"""Connects components to handlers: errors become notices on the page, and all handlers share one limited queue."""

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from coconut_ds.errors import CoconutError
from serve.app.markup import notice

log = logging.getLogger("serve")
MAX_RUNNING = 4
"""Maximum number of handlers that run at the same time; each model has its own queue as well."""
MAX_WAITING = 64
"""Maximum number of waiting handlers; if there are more, the visitor gets an error."""
ComponentUpdates = dict[Any, Any]
"""New values by component; other components do not change."""
Handler = Callable[..., AsyncGenerator[ComponentUpdates, None]]


def on(
    trigger: Callable[..., Any],
    handler: Handler,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    message: gr.HTML,
    on_error: ComponentUpdates | None = None,
    **options: Any,
) -> Any:
    """Runs a handler whenever an event occurs.

    Args:
        trigger: the event, for example ``button.click``.
        handler: an async generator that yields updates.
        inputs: components whose values are the handler's arguments.
        outputs: all components that the handler may update.
        message: the component that shows errors.
        on_error: updates in case of an error, which remove what waits for the handler's result.
        options: further options of Gradio's event listeners.
    """
    settings = {"api_visibility": "private", "concurrency_limit": MAX_RUNNING, "concurrency_id": "app"}
    settings |= {"show_progress": "hidden", "trigger_mode": "once"}
    wrapped = _with_notices(handler, message, on_error or {})
    return trigger(wrapped, list(inputs), [message, *outputs], **{**settings, **options})


def _with_notices(handler: Handler, message: gr.HTML, on_error: ComponentUpdates) -> Handler:
    """Wraps a handler so that its errors are shown in ``message``."""

    async def run(*values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        # Part of the first update, because the browser takes some milliseconds for each.
        cleared: ComponentUpdates = {message: ""}
        try:
            async with aclosing(handler(*values)) as updates:
                async for update in updates:
                    yield {**cleared, **update}
                    cleared = {}
            if cleared:
                yield cleared
        except CoconutError as error:
            yield {message: notice(str(error)), **on_error}
        except Exception:
            number = secrets.token_hex(4)
            log.exception("error %s in the app", number)
            text = f"An internal error occurred. The server's log has details under error {number}."
            yield {message: notice(text), **on_error}

    return run
