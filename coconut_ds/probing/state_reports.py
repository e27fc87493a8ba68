"""The modes ``attention`` and ``patch`` of ``coconut_ds.probe``."""

from pathlib import Path

from coconut_ds.data.problem import Problem
from coconut_ds.probing.export import Row, write_csv, write_json
from coconut_ds.probing.state_figures import draw_attention, draw_patching, layer_names
from coconut_ds.probing.state_patching import StatePatching, patch_states
from coconut_ds.probing.thought_attention import ThoughtAttention, thought_attention
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings import ProbeConfig

FILES = (
    *("attention.json", "attention.csv", "edges.csv", "attention.png"),
    *("patching.json", "patching.csv", "patching.png"),
)
"""The files of both modes."""


def report_attention(reasoner: Reasoner, question: str, problem: Problem | None, out: Path) -> str:
    """Mode ``attention``: what each thought attends to. Returns a summary, as all modes."""
    found = thought_attention(reasoner, question, problem)
    layers = range(1, len(found.weights) + 1)
    write_json(out / "attention.json", found)
    write_csv(out / "attention.csv", attention_rows(found))
    write_csv(out / "edges.csv", edge_rows(found))
    draw_attention(found, out / "attention.png")
    lines = [question, f"layer {layers[-1]}, mean over heads; the most attended tokens:"]
    for name, weights in zip(found.rows, found.mean(layers[-1]), strict=True):
        top = sorted(range(len(weights)), key=lambda at: -weights[at])[:4]
        lines.append(f"  {name:<10} " + "  ".join(f"{found.tokens[at].strip() or '␣'} {weights[at]:.2f}" for at in top))
    if found.edges:
        lines.append("weight on edges of a shortest path (with equal attention):")
        for name, shares in zip(found.rows, found.on_edges(layers[-1]), strict=True):
            own = [share for edge, share in zip(found.edges, shares, strict=True) if edge.is_optimal]
            lines.append(f"  {name:<10} {sum(w for w, _ in own):.2f} ({sum(e for _, e in own):.2f})")
    return "\n".join(lines) + "\n"


def attention_rows(found: ThoughtAttention) -> list[Row]:
    """One row for each weight."""
    return [
        {"layer": layer, "head": head, "from": name, "position": at, "token": found.tokens[at], "weight": weight}
        for layer in range(1, len(found.weights) + 1)
        for head in range(1, len(found.weights[layer - 1]) + 1)
        for name, weights in zip(found.rows, found.mean(layer, head), strict=True)
        for at, weight in enumerate(weights)
    ]


def edge_rows(found: ThoughtAttention) -> list[Row]:
    """One row for each layer, thought and edge of the graph: the mean over heads."""
    return [
        {"layer": layer, "from": name, "edge": edge.name, "weight": weight, "equal attention": equal}
        | {"edges from the root": edge.hop, "on a shortest path": edge.is_optimal}
        for layer in range(1, len(found.weights) + 1)
        for name, shares in zip(found.rows, found.on_edges(layer), strict=True)
        for edge, (weight, equal) in zip(found.edges, shares, strict=True)
    ]


def patching_rows(found: StatePatching) -> list[Row]:
    """One row for each replaced state."""
    return [
        {"grid": grid.name, "layer": layer, "position": name, **cell.as_dict()}
        for grid in (found.effect, *found.controls)
        for layer, cells in zip(layer_names(len(grid.cells)), grid.cells, strict=True)
        for name, cell in zip(found.positions, cells, strict=True)
    ]


def report_patch(config: ProbeConfig, reasoner: Reasoner, question: str, references: list[str], out: Path) -> str:
    """Mode ``patch``: layer × position patching between the question and a donor. Returns a summary, as all modes."""
    found = patch_states(
        reasoner,
        question,
        config.donor,
        references=references,
        later=config.later,
        positions=config.positions,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
    )
    write_json(out / "patching.json", found)
    write_csv(out / "patching.csv", patching_rows(found))
    draw_patching(found, out / "patching.png")
    lines = [f"{question}  →  {found.text!r}", f"states of {found.donor}  →  {found.donor_text!r}"]
    for grid in (found.effect, *found.controls):
        lines.append(f"{grid.name}: effect of each state (0: own text, 1: donor's text)")
        lines.append("  layer  " + "  ".join(f"{name.strip() or '␣':>10}" for name in found.positions))
        for layer, cells in reversed(list(zip(layer_names(len(grid.cells)), grid.cells, strict=True))):
            lines.append(f"  {layer:<6} " + "  ".join(f"{cell.effect:10.2f}" for cell in cells))
    return "\n".join(lines) + "\n"
