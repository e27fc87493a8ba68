"""How pages listen: every handler's errors become a notice, and all of them share one queue with limits."""

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from coconut_ds.errors import CoconutError
from serve.app.markup import notice

log = logging.getLogger("serve")
AT_A_TIME = 4
"""Handlers that run at a time; models have queues of their own."""
WAITING = 64
"""Handlers that may wait; a visitor is told when there are more."""
ComponentUpdates = dict[Any, Any]
"""By component its new value; other components stay as they are."""
Handler = Callable[..., AsyncGenerator[ComponentUpdates, None]]


def on(
    trigger: Callable[..., Any],
    handler: Handler,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    message: gr.HTML,
    **options: Any,
) -> Any:
    """Has ``trigger`` (``button.click``, say) run a handler.

    Args:
        trigger: what is listened to.
        handler: an async generator over updates.
        inputs: components whose values it takes.
        outputs: all components that it may update.
        message: where errors are told.
        options: of Gradio's listeners.
    """
    settings = {"api_visibility": "private", "concurrency_limit": AT_A_TIME, "concurrency_id": "app"}
    settings |= {"show_progress": "hidden", "trigger_mode": "once"}
    return trigger(_told(handler, message), list(inputs), [message, *outputs], **{**settings, **options})


def _told(handler: Handler, message: gr.HTML) -> Handler:
    async def run(*values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        yield {message: ""}
        try:
            async with aclosing(handler(*values)) as updates:
                async for update in updates:
                    yield update
        except CoconutError as error:
            yield {message: notice(str(error))}
        except Exception:
            number = secrets.token_hex(4)
            log.exception("a page failed (%s)", number)
            yield {message: notice(f"This did not work. The server's log says why, under {number}.")}

    return run
