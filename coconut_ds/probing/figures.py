"""Figures of probing results, as PNG files. The colours (Okabe and Ito, cividis) suit colour-blind readers."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coconut_ds.evaluation.statistics import Mean
from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.probing.answers import SweepPoint
from coconut_ds.probing.effects import Effect
from coconut_ds.probing.intervene import InterventionArm, InterventionReport
from coconut_ds.probing.linear import ProbeScore
from coconut_ds.probing.trace import ThoughtTrace

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
MARKS = ("o", "s", "^", "D", "v", "P")
SCALE = "cividis"
DPI = 130
TITLE_CHARACTERS = 90
MAX_COLUMNS = 4
"""Largest number of panels in a row."""


@contextmanager
def figure_at(path: Path, title: str, rows: int, columns: int, width: float, height: float) -> Iterator[list[Any]]:
    """Yields the axes of a new figure, row by row, and writes the figure to ``path`` afterwards. Sizes in inches."""
    # Imported here because matplotlib is slow to import. pyplot is not used, because it keeps every figure alive and
    # would change the backend of a notebook.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(_escape(textwrap.fill(title, min(TITLE_CHARACTERS, int(10 * width)))), fontsize=11)
    yield list(axes.flat)
    figure.savefig(path)


def draw_thoughts(trace: ThoughtTrace, path: Path) -> None:
    """Draws the likeliest tokens of each thought, and next to them entropy, norm and cosine to the previous thought."""
    states = [*(one.decoded for one in trace.thoughts), trace.last]
    names = [*(str(one.number) for one in trace.thoughts), "text"]
    title = f"Thoughts decoded with the LM head: {_short(trace.question)}  →  {_short(trace.answer)}"
    height = 1.6 + 0.42 * len(states)
    with figure_at(path, title, 1, 3, 11, max(height, 3.2)) as (tokens, sizes, cosines):
        _heat_map(tokens, states, names)
        tokens.set(
            xlabel="token, by rank",
            ylabel="pause, or state before the text" if trace.pauses else "thought, or state before the text",
        )
        numbers = [one.number for one in trace.thoughts]
        sizes.plot(numbers, [one.norm for one in trace.thoughts], color=BLUE, marker="o", label="norm")
        sizes.axhline(trace.embedding_norm, color=GREY, linestyle=":", label="mean token embedding")
        sizes.plot(
            numbers, [one.decoded.entropy for one in trace.thoughts], color=ORANGE, marker="s", label="entropy (nats)"
        )
        sizes.set(xlabel="thought", ylabel="norm or entropy", ylim=(0, None), title="norm and entropy")
        cosines.plot(
            numbers[1:],
            [one.cosine_to_previous for one in trace.thoughts[1:]],
            color=BLUE,
            marker="o",
            label="to the previous thought",
        )
        nearest = [one.nearest[0].cosine for one in trace.thoughts]
        cosines.plot(numbers, nearest, color=GREEN, marker="^", label="to the nearest token embedding")
        cosines.set(xlabel="thought", ylabel="cosine similarity", ylim=(-1.05, 1.05), title="direction")
        for axes in (sizes, cosines):
            _whole_numbers(axes, numbers)
            axes.legend(frameon=False, fontsize=8)


def draw_layers(trace: ThoughtTrace, path: Path) -> None:
    """Draws the logit lens: the likeliest token at each layer and thought, with the final norm applied once."""
    columns = [*(one.layers for one in trace.thoughts)]
    if not columns:
        return
    title = f"Logit lens of each thought (final norm applied once): {_short(trace.question)}"
    count = len(columns[0])
    with figure_at(path, title, 1, 1, 2.6 + 1.1 * len(columns), 1.9 + 0.42 * count) as (axes,):
        values = [[column[layer].probabilities[0] for column in columns] for layer in range(count)]
        image = axes.imshow(values, cmap=SCALE, vmin=0, vmax=1, aspect="auto", origin="lower")
        for layer in range(count):
            for place, column in enumerate(columns):
                _cell(axes, place, layer, column[layer].tokens[0], column[layer].probabilities[0])
        axes.set_xticks(range(len(columns)), [str(one.number) for one in trace.thoughts])
        axes.set_yticks(range(count), ["input", *map(str, range(1, count))])
        axes.set(xlabel="thought", ylabel="layer")
        axes.figure.colorbar(image, ax=axes, label="probability of the likeliest token")


def draw_report(
    report: InterventionReport,
    path: Path,
    name: str | None = None,
    arm_name: Callable[[InterventionArm], str] = lambda arm: arm.name,
) -> None:
    """Draws the effect of an intervention and its controls on the log probability of the baseline's text.

    There is one row per arm and one dot per draw; the dot is open if the answer is unchanged.

    Args:
        report: the report.
        path: where to write the figure.
        name: name of the intervention; None: its short name.
        arm_name: makes the name of an arm; the default is its short name.
    """
    arms = [report.effect, *report.controls]
    name, thought = name or report.intervention.name, report.intervention.thought
    title = f"{name}, thought {thought}: {_short(report.question)}  →  {_short(report.answer)}"
    with figure_at(path, title, 1, 1, 8.5, 1.7 + 0.4 * len(arms)) as (axes,):
        for row, arm in enumerate(arms):
            colour = BLUE if row == 0 else GREY
            for one in arm.outcomes:
                axes.plot(
                    one.change, row, "o", color=colour, markerfacecolor="none" if one.kept else colour, clip_on=False
                )
        names = [arm_name(arm).removeprefix("control: ") for arm in arms]
        names = [
            f"{'control: ' if row else ''}{one}  ({arm.kept:.0%} unchanged)"
            for row, (one, arm) in enumerate(zip(names, arms, strict=True))
        ]
        axes.set_yticks(range(len(arms)), [_escape(name) for name in names])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel("change in log-probability of the original answer (nats); filled: the answer changed")
        axes.set_ylabel("what was changed")
        axes.grid(axis="x", color="#e5e5e5")


def draw_sweep_points(points: Sequence[SweepPoint], path: Path, title: str) -> None:
    """Draws accuracy after k thoughts, for freely generated text and for forced answers."""
    with figure_at(path, title, 1, 1, 6.5, 3.8) as (axes,):
        numbers = [one.num_thoughts for one in points]
        _line(axes, numbers, [one.right for one in points], "free generation", BLUE, "o")
        _line(axes, numbers, [one.forced_right for one in points], "forced answer", ORANGE, "s")
        axes.set(xlabel="number of thoughts", ylabel="accuracy", ylim=(0, 1.02))
        _whole_numbers(axes, numbers)
        axes.legend(frameon=False)


def draw_probes(scores: Sequence[ProbeScore], path: Path, title: str) -> None:
    """Draws one panel per label: the accuracy of linear probe, LM head and shuffled-label probe at each state."""
    labels = list(dict.fromkeys(one.label for one in scores))
    with figure_at(path, title, 1, len(labels), 2.2 + 2.4 * len(labels), 4.0) as panels:
        for axes, label in zip(panels, labels, strict=True):
            own = [one for one in scores if one.label == label]
            places = list(range(len(own)))
            _line(axes, places, [one.probe for one in own], "linear probe", BLUE, "o")
            if all(one.lens is not None for one in own):
                _line(axes, places, [one.lens for one in own if one.lens is not None], "LM head", ORANGE, "s")
            _line(axes, places, [one.shuffled for one in own], "probe, shuffled labels", GREY, "^")
            axes.set_xticks(places, [one.state.removeprefix("thought ").replace("before the ", "") for one in own])
            axes.tick_params(axis="x", labelsize=8)
            axes.axhline(own[0].majority, color=GREY, linewidth=0.8, linestyle=":", label="most common label")
            axes.set(title=label, xlabel="thought", ylim=(0, 1.02))
        panels[0].set_ylabel("accuracy")
        panels[0].figure.legend(*_legend_entries(panels), loc="outside lower center", ncols=4, frameon=False)


def draw_effects(effects: Sequence[Effect], path: Path, title: str, name: Callable[[str], str] = str) -> None:
    """Draws, for each intervention on each thought, the shares of unchanged answers and of the donor's answers.

    ``name`` makes the label of an intervention from its short name, which is the default.
    """
    names = list(dict.fromkeys(one.name for one in effects))
    thoughts = sorted({one.thought for one in effects})
    columns = min(len(thoughts), MAX_COLUMNS)
    rows = -(-len(thoughts) // columns)
    height = 0.8 + rows * (1.0 + 0.32 * len(names))
    with figure_at(path, title, rows, columns, 2.6 + 2.1 * columns, height) as panels:
        for place, (axes, thought) in enumerate(zip(panels, thoughts, strict=False)):
            for one in (one for one in effects if one.thought == thought):
                row = names.index(one.name)
                _whisker(axes, one.kept, row, BLUE, "o", "are unchanged")
                if one.became_donors is not None:
                    _whisker(axes, one.became_donors, row, ORANGE, "s", "become the donor's")
            axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6), title=f"thought {thought}")
            axes.set_yticks(range(len(names)), [""] * len(names) if place % columns else list(map(name, names)))
            axes.grid(color="#e5e5e5")
            if place % columns == 0:
                axes.set_ylabel("kind of change")
            if place >= len(thoughts) - columns:
                axes.set_xlabel("share of answers")
        for axes in panels[len(thoughts) :]:
            axes.set_axis_off()
        handles, texts = _legend_entries(panels)
        texts = [f"answers that {text}" for text in texts]
        panels[0].figure.legend(handles, texts, loc="outside lower center", ncols=2, frameon=False)


def _heat_map(axes: Any, states: Sequence[DecodedThought], names: Sequence[str]) -> None:
    image = axes.imshow([one.probabilities for one in states], cmap=SCALE, vmin=0, vmax=1, aspect="auto")
    for row, one in enumerate(states):
        for rank, (token, probability) in enumerate(zip(one.tokens, one.probabilities, strict=True)):
            _cell(axes, rank, row, token, probability)
    axes.set_xticks(range(len(states[0].tokens)), [str(rank + 1) for rank in range(len(states[0].tokens))])
    axes.set_yticks(range(len(states)), names)
    axes.figure.colorbar(image, ax=axes, label="probability")


def _cell(axes: Any, x: float, y: float, token: str, probability: float) -> None:
    text = f"{_visible(token)}\n{probability:.2f}"
    axes.text(x, y, text, ha="center", va="center", fontsize=7, color="black" if probability > 0.6 else "white")


def _line(axes: Any, places: Sequence[int], means: Sequence[Mean], label: str, colour: str, mark: str) -> None:
    axes.plot(places, [one.estimate for one in means], color=colour, marker=mark, markersize=5, label=label)
    axes.fill_between(places, [one.low for one in means], [one.high for one in means], color=colour, alpha=0.2, lw=0)


def _whisker(axes: Any, mean: Mean, row: int, colour: str, mark: str, label: str) -> None:
    axes.plot([mean.low, mean.high], [row, row], color=colour, linewidth=2.2, alpha=0.5, solid_capstyle="butt")
    axes.plot(mean.estimate, row, mark, color=colour, markersize=5, label=label)


def _legend_entries(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The legend entries of all panels, without duplicate labels."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _whole_numbers(axes: Any, numbers: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if numbers:
        axes.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)


def _visible(token: str) -> str:
    """A token with newlines and spaces made visible, shortened to 12 characters."""
    shown = token.replace("\n", "⏎")
    shown = "␣" * len(shown) if shown and not shown.strip() else shown.strip() or "∅"
    return _escape(shown if len(shown) <= 12 else f"{shown[:11]}…")


def _short(text: str, length: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length // 2]}…{flat[-length // 2 :]}"


def _escape(text: str) -> str:
    """Escapes dollar signs, which matplotlib would read as the start of a formula."""
    return text.replace("$", r"\$")
