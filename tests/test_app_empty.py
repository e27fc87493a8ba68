"""No part of the app is created, nor changed by an update of what contains it, while its content arrives.

Gradio loses values of such components in slow browsers. A test in ``test_app_browser.py`` uses such a browser.
"""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from making_app import SUMS

from coconut_ds.model.card import ModelCard
from serve.app.layout import blocks_of
from serve.app.problems import ProblemFile
from serve.app.studio import Studio
from serve.checkpoints.finding import ServedCheckpoint
from serve.checkpoints.offered import Checkpoints
from serve.limits import Limits

CONTAINERS = {"row", "column", "group", "form", "accordion", "tabitem"}


def config() -> Any:
    """The components and events of the whole app, as browsers get them."""
    card = ModelCard("coconut", 1, c_thought=2, max_latent_stage=1, marker_ids={}, num_thoughts=2)
    checkpoints = Checkpoints([ServedCheckpoint("a", Path("a"), Path("a"), card, 0)])
    service: Any = SimpleNamespace(models=SimpleNamespace(checkpoints=checkpoints), limits=Limits())

    async def make() -> Any:
        # In a coroutine: without a running event loop, Gradio makes one of its own and never closes it.
        return blocks_of(Studio(service, {"sums": ProblemFile("sums", SUMS)})).get_config_file()

    return asyncio.run(make())


def test_everything_that_is_ever_shown_is_there_from_the_start():
    found = config()
    components = {one["id"]: one for one in found["components"]}
    hidden = [one["type"] for one in components.values() if one["props"].get("visible", True) is not True]
    # What hands a value to a script, and is never shown.
    assert sorted(hidden) == ["number", "textbox", "textbox"]
    updated = {components[number]["type"] for event in found["dependencies"] for number in event["outputs"]}
    assert "plot" in updated
    assert updated & CONTAINERS == set()
