"""Hides what has no content: figures without a picture, groups of such figures, and controls of results.

All of these are part of the page from the start, and the browser hides them with CSS. ``visible=False`` would not do:
Gradio creates such a component only when it becomes visible, and a slow browser loses values that arrive meanwhile. For
the same reason no handler updates a row or a column: Gradio then overwrites what its components have just received.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

FIGURE, GROUP = "figure", "figures"
"""Classes of a figure, and of a row or a column that is hidden while none of its figures has a picture."""
STYLE = f"""
:is(.{FIGURE}, .{GROUP}):not(:has([data-testid=plotly])),
.of-search:not(:has(.graph.moves)) :is(#after, .form:has(> #after)),
html:not(:has(#dataset-state .busy)) #cancel-dataset {{ display: none !important; }}
"""
"""Search has a slider once its graph shows values after several numbers of thoughts, and Data set can be cancelled
while it measures."""


def figure(label: str, elem_id: str | None = None, classes: Sequence[str] = (), min_width: int = 160) -> gr.Plot:
    """A figure that is hidden while its value is None."""
    return gr.Plot(label=label, elem_id=elem_id, elem_classes=[FIGURE, *classes], min_width=min_width)


def emptied(*components: Component) -> dict[Any, Any]:
    """Updates that remove figures and texts."""
    return {one: None if isinstance(one, gr.Plot) else "" for one in components}
