"""Opens the app: brings its lists up to date, restores the view of a link and computes its results.

Without a link it opens on the page *Think*, or, with the released model that searches graphs, on its search.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.data.graph_answers import is_graph_problem
from serve.app.checkpoint_list import choices
from serve.app.compare import ComparePage, partner
from serve.app.dataset import MAX_DRAWS_A_PROBLEM, DataSetPage
from serve.app.events import ComponentUpdates
from serve.app.intervene import MAX_SEED, MAX_STRENGTH, NO_PAUSE, IntervenePage, up_to
from serve.app.measures import MAX_DRAWS, MAX_MEASURED, MIN_MEASURED, PARTS
from serve.app.permalink import View, decimal_of, number_of, view_of
from serve.app.question import Bar
from serve.app.search import SearchPage
from serve.app.states import MAX_HEAD, MAX_LAYER, POSITIONS, WHAT, StatesPage
from serve.app.studio import Studio
from serve.app.think import ThinkPage
from serve.app.words import KINDS, LATER

LABELS = {
    "think": "Think",
    "search": "Search",
    "intervene": "Intervene",
    "states": "States",
    "compare": "Compare",
    "dataset": "Data set",
}
"""Labels of the pages that have results."""
PRESS = """(page) => {
  const press = (tries) => {
    const button = page && document.getElementById('run-' + page);
    if (page && !button && tries) return setTimeout(() => press(tries - 1), 100);
    if (button) button.click();
    document.documentElement.dataset.ready = 'yes';
  };
  press(100);
}"""
"""Presses the page's button, once it exists: a tab's components are created when it is first opened. Then marks the
document as ready: the app handles events, and the link's tab is open."""


@dataclass(frozen=True)
class Pages:
    """All pages that have results."""

    think: ThinkPage
    search: SearchPage
    intervene: IntervenePage
    states: StatesPage
    compare: ComparePage
    dataset: DataSetPage

    @property
    def kept(self) -> list[gr.State]:
        """The last result of each page, in the order of ``LABELS``."""
        pages = (self.think, self.search, self.intervene, self.states, self.compare, self.dataset)
        return [one.kept for one in pages]


def settings_of(bar: Bar, pages: Pages) -> list[Any]:
    """The components with the settings, in the order of ``View``'s fields after ``view``."""
    changing, options = pages.intervene, pages.intervene.options
    return [
        *(bar.model, bar.file, bar.number, bar.question, bar.thoughts),
        *(pages.think.follow, pages.search.after),
        *(changing.kind, changing.thought, changing.draws, options.later, options.strength),
        *(options.other, options.token, options.seed, options.pause),
        *(pages.states.what, pages.states.layer, pages.states.head),
        *(pages.states.donor, pages.states.positions, pages.states.later),
        *(pages.compare.model, pages.compare.question),
        *(pages.dataset.parts, pages.dataset.count, pages.dataset.draws),
    ]


def restore(blocks: gr.Blocks, studio: Studio, bar: Bar, pages: Pages, tabs: gr.Tabs) -> None:
    """Makes the app, when opened by a link, restore the link's view and compute its results."""
    press = gr.Textbox(visible=False)

    async def opened(request: gr.Request) -> ComponentUpdates:
        await studio.checkpoints.up_to_date()
        query = {name: text for name, text in dict(request.query_params).items() if isinstance(text, str)}
        view = view_of(query)
        update = _lists(studio, bar, pages, view)
        if "view" not in query:
            first = "search" if _opens_on_a_search(studio) else ""
            return {press: first, **update, **({tabs: gr.update(selected=first)} if first else {})}
        update |= _problem(studio, bar, view)
        update |= _inputs(studio, pages, view)
        return {**update, tabs: gr.update(selected=view.view), press: view.view if view.view in LABELS else ""}

    outputs = [tabs, press, bar.facts, pages.search.wanted, *settings_of(bar, pages)]
    loaded = blocks.load(opened, None, outputs, api_visibility="private", show_progress="hidden")
    loaded.then(None, [press], None, js=PRESS)


def _opens_on_a_search(studio: Studio) -> bool:
    """Whether the app opens on a model that belongs to no run, and whose own problems are graphs.

    The released model that searches is one. Its search is shown at once; the work takes a fraction of a second.
    """
    if not studio.checkpoints.names:
        return False
    first = studio.checkpoints[studio.checkpoints.first_thinking]
    file = studio.file(studio.file_of.get(first.name))
    return first.standing is None and file is not None and is_graph_problem(file.problems[0])


def _lists(studio: Studio, bar: Bar, pages: Pages, view: View) -> ComponentUpdates:
    """Updates of everything that depends on the list of checkpoints, which may have changed since the page was made."""
    names = studio.checkpoints.names
    update: ComponentUpdates = {}
    if names:
        kept = bar.model.value if bar.model.value in names else studio.checkpoints.first_thinking
        model = view.model if view.model in names else kept
        card = studio.card(model)
        thoughts = _first(number_of(view.thoughts, 0, studio.max_thoughts), card.num_latents)
        other = view.other_model if view.other_model in names else partner(studio, model)
        update |= bar.showing_model(studio, model, thoughts)
        update |= {bar.model: gr.update(choices=choices(studio.checkpoints), value=model)}
        update |= {pages.compare.model: gr.update(choices=choices(studio.checkpoints), value=other)}
        for slider, text, default in (
            (pages.intervene.thought, view.thought, 1),
            (pages.intervene.options.other, view.other_thought, 2),
        ):
            update[slider] = up_to(thoughts, _first(number_of(text, 1, thoughts), default))
    pause = view.pause if view.pause in studio.pausing else NO_PAUSE
    update[pages.intervene.options.pause] = gr.update(choices=[NO_PAUSE, *studio.pausing], value=pause)
    return update


def _problem(studio: Studio, bar: Bar, view: View) -> ComponentUpdates:
    """Updates that show the link's question."""
    update: ComponentUpdates = {}
    chosen = studio.file(view.file)
    if chosen is not None:
        place = _first(number_of(view.number, 0, len(chosen.problems) - 1), 0)
        update |= {bar.file: view.file, **bar.showing_problem(chosen, place)}
    return {**update, bar.question: view.question} if view.question else update


def _inputs(studio: Studio, pages: Pages, view: View) -> ComponentUpdates:
    """Updates of the pages' own inputs that the link has a valid value for."""
    changing, options, looking, measuring = pages.intervene, pages.intervene.options, pages.states, pages.dataset
    parts = [name for name in view.parts.split(",") if name in PARTS]
    found = {
        pages.search.wanted: number_of(view.after, 0, studio.max_thoughts),
        changing.kind: view.kind if view.kind in map(str, KINDS) else None,
        changing.draws: number_of(view.draws, 1, MAX_DRAWS),
        options.later: view.later if view.later in LATER else None,
        options.strength: decimal_of(view.strength, 0, MAX_STRENGTH),
        options.seed: number_of(view.seed, 0, MAX_SEED),
        looking.what: view.what if view.what in WHAT else None,
        looking.layer: number_of(view.layer, 0, MAX_LAYER),
        looking.head: number_of(view.head, 0, MAX_HEAD),
        looking.positions: view.positions if view.positions in POSITIONS else None,
        looking.later: view.later_states if view.later_states in LATER else None,
        measuring.parts: parts or None,
        measuring.count: number_of(view.count, MIN_MEASURED, MAX_MEASURED),
        measuring.draws: number_of(view.draws_per_problem, 1, MAX_DRAWS_A_PROBLEM),
    }
    update: ComponentUpdates = {component: value for component, value in found.items() if value is not None}
    return {
        **update,
        pages.think.follow: view.follow,
        looking.donor: view.donor,
        options.token: view.token,
        pages.compare.question: view.other_question,
    }


def _first(found: int | None, default: int) -> int:
    return default if found is None else found
