"""Draws ``docs/stages.png``: the training sequences of one problem at stages 0 to 3, made by the code that trains.

Usage: ``python docs/draw_stages.py``
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, TokenizedProblem
from coconut_ds.methods.layout import IGNORE, lay_out

NAMES = ["question", "step 1", "step 2", "step 3", "answer", "<s>", "<e>", "thought"]
COLOURS = {"question": "#DDDDDD", "answer": "#009E73", "<s>": "#BBBBBB", "<e>": "#BBBBBB", "thought": "#0072B2"}
STEP_COLOUR = "#E69F00"


def main() -> None:
    """Draws one row of boxes per stage and writes the picture next to this file."""
    problem = TokenizedProblem([0], ([1], [2], [3]), [4])
    spec = CurriculumSpec(c_thought=1, max_latent_stage=3)
    figure, axes = pyplot.subplots(figsize=(9, 3.1), layout="constrained")
    for stage in range(4):
        layout = lay_out(METHODS["coconut"], problem, stage, spec, MarkerIds(5, 6, 7))
        axes.text(-0.15, -stage, f"stage {stage}", ha="right", va="center", fontsize=10)
        for place, (token, label) in enumerate(zip(layout.input_ids, layout.labels, strict=True)):
            name = NAMES[token]
            colour = COLOURS.get(name, STEP_COLOUR)
            edge = "black" if label != IGNORE else "white"
            axes.add_patch(
                FancyBboxPatch(
                    (place + 0.05, -stage - 0.3), 0.9, 0.6, boxstyle="round,pad=0,rounding_size=0.08",
                    facecolor=colour, edgecolor=edge, linewidth=1.6,
                )
            )  # fmt: skip
            dark = name in ("thought", "answer")
            axes.text(
                place + 0.5, -stage, name, ha="center", va="center", fontsize=9, color="white" if dark else "black"
            )
            if name == "thought":
                axes.annotate(
                    "", (place + 0.15, -stage + 0.32), (place - 0.5, -stage + 0.32),
                    arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.45", "color": "#0072B2"},
                )  # fmt: skip
    axes.text(0.05, -3.75, "black frame: the loss counts here    arrow: last hidden state fed back", fontsize=9)
    axes.set(xlim=(-0.9, 7.1), ylim=(-4.0, 0.75))
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("stages.png"), dpi=130)


if __name__ == "__main__":
    main()
