"""A cancelled measurement of the app shows no more progress, whether or not Gradio has cancelled its handler."""

import asyncio
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from serve.app import dataset

STEP_S = 0.02


@pytest.fixture(autouse=True)
def _slow_measurement(monkeypatch) -> None:
    """A measurement reports progress for a minute."""

    async def measured(*arguments: Any) -> AsyncGenerator[tuple[str, int, int], None]:
        for done in range(round(60 / STEP_S)):
            await asyncio.sleep(STEP_S)
            yield "part", done, 3000

    monkeypatch.setattr(dataset, "measure_data_set", measured)


async def handlers() -> tuple[dataset.DataSetPage, Any, Any]:
    """The page, and the handlers of its buttons *Measure* and *Cancel*."""
    # In a coroutine: without a running event loop, Gradio makes one of its own and never closes it.
    with gr.Blocks(analytics_enabled=False) as blocks:
        bar = SimpleNamespace(model=gr.Textbox(), file=gr.Textbox(), thoughts=gr.Number())
        page = dataset.build(SimpleNamespace(max_thoughts=8), bar)
    found = {fn.targets[0][0]: fn.fn for fn in blocks.fns.values() if fn.fn is not None}
    return page, found[page.run._id], found[page.cancel._id]


def test_no_progress_follows_the_report_that_a_measurement_was_cancelled():
    """Gradio's own request to cancel, which closes the handler, has not arrived yet."""
    shown: list[str] = []
    running: list[Any] = []

    async def visit() -> None:
        page, measure, cancel = await handlers()

        async def show(updates: AsyncGenerator[dict[Any, Any], None]) -> None:
            async for update in updates:
                shown.extend(value for one, value in update.items() if one is page.state)

        await show(cancel(running))
        first = asyncio.create_task(show(measure(running, "model", "file", 2, ["sweep"], 10, 1)))
        while len(shown) < 3:
            await asyncio.sleep(STEP_S)
        await show(cancel(running))
        await asyncio.sleep(5 * STEP_S)
        assert first.done()
        assert running == []

    asyncio.run(visit())
    assert "Cancelled" in shown[0], "nothing runs, so nothing is waited for"
    assert all("progress" in one for one in shown[1:-1])
    assert "Cancelled" in shown[-1]


def test_a_measurement_that_gradio_has_closed_is_not_waited_for():
    running: list[Any] = []

    async def visit() -> float:
        _, measure, cancel = await handlers()
        updates = measure(running, "model", "file", 2, ["sweep"], 10, 1)
        for _ in range(4):
            await anext(updates)
        assert len(running) == 1
        began = time.monotonic()
        report = asyncio.create_task(exhaust(cancel(running)))
        await asyncio.sleep(STEP_S)
        await updates.aclose()
        await report
        return time.monotonic() - began

    async def exhaust(updates: AsyncGenerator[dict[Any, Any], None]) -> None:
        async for _ in updates:
            pass

    assert asyncio.run(visit()) < dataset.CANCEL_WITHIN_S / 2
    assert running == []
