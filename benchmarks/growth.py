"""Measures how the time and memory of an update grow with the number of thoughts and with the sequence length.

    python benchmarks/growth.py --overwrite   # 2 CPU cores: about five minutes; replaces docs/growth.png

Forward and backward passes over micro batches of 8 random sequences, with the six-layer model of ``training.py`` in
fp32. The time is the median over rounds in which all settings take turns. The memory is what autograd saves for the
backward pass, without weights. The last line is JSON: ``slope_over_pass`` is the time of one additional thought over
that of a pass over a single position; ``thoughts_r2`` is the share of variance (R²) that a straight line over 0 to 12
thoughts explains.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from training_workload import Workload, make_model

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.latent_loop import LatentLoop, latent_loss

ROWS, TARGETS = 8, 12
THOUGHTS = (0, 1, 2, 4, 6, 8, 10, 12)
LENGTHS = (64, 160, 320, 640, 960)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "growth.png")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.overwrite:
        parser.error(f"--out {arguments.out}: exists; set --out to another file, or add --overwrite to replace it")
    torch.set_num_threads(arguments.threads)
    work = Workload.load(None, None, 6)
    loop = LatentLoop(make_model("gpt2_small", work)).train()
    settings = [(360, n) for n in THOUGHTS] + [(length, 6) for length in LENGTHS] + [(1, 0)]
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for number in range(arguments.rounds + 1):
        for setting in seconds:
            took = timed(loop, work, *setting)
            if number:
                seconds[setting].append(took)
    times = {setting: statistics.median(values) for setting, values in seconds.items()}
    memory = {setting: saved_mb(loop, work, *setting) for setting in seconds}
    for (length, thoughts), took in times.items():
        print(f"{length:>5} tokens {thoughts:>3} thoughts  {took:7.3f} s  {memory[length, thoughts]:8.1f} MB")
    draw(times, memory, arguments.out)
    by_thoughts = [times[360, n] for n in THOUGHTS]
    slope, r2 = line(list(THOUGHTS), by_thoughts)
    found = {
        "slope_s": round(slope, 4),
        "pass_s": round(times[1, 0], 4),
        "slope_over_pass": round(slope / times[1, 0], 2),
    }
    print(json.dumps({"threads": arguments.threads, "torch": torch.__version__, **found, "thoughts_r2": round(r2, 4)}))


def batch_of(work: Workload, length: int, thoughts: int) -> tuple:
    """The tensors of ``ROWS`` random sequences of ``length`` positions, thoughts included, and at least 2."""
    generator = torch.Generator().manual_seed(length)
    layouts = []
    for ids in torch.randint(0, 1000, (ROWS, max(length, 2)), generator=generator).tolist():
        targets = min(TARGETS, len(ids) - 1)
        before = len(ids) - targets - thoughts
        labels = [IGNORE] * (len(ids) - targets) + ids[len(ids) - targets :]
        layouts.append(Layout(ids, labels, before if thoughts else len(ids), thoughts))
    inputs, targets_of = work.collate(layouts)
    return inputs, targets_of


def timed(loop: LatentLoop, work: Workload, length: int, thoughts: int) -> float:
    """Seconds of a forward and backward pass; with ``length`` 1, of a single pass over one position."""
    loop.zero_grad(set_to_none=True)
    inputs, targets = batch_of(work, length, thoughts)
    began = time.perf_counter()
    if length == 1:
        states: Tensor = loop.model.base_model(input_ids=inputs.prefix_ids[:, :1]).last_hidden_state
        states.sum().backward()
    else:
        latent_loss(loop, inputs, targets).backward()
    return time.perf_counter() - began


def saved_mb(loop: LatentLoop, work: Workload, length: int, thoughts: int) -> float:
    """MB that autograd saves for the backward pass; each storage is counted once, parameters are not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in loop.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = latent_loss(loop, *batch_of(work, length, thoughts))
    assert held.requires_grad
    return sum(seen.values()) / 1e6


def line(places: list[int], values: list[float]) -> tuple[float, float]:
    """Slope of the least squares line through the points, and the share of variance that it explains."""
    x, y = (torch.tensor(each, dtype=torch.float64) for each in (places, values))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    rest = y - y.mean() - slope * (x - x.mean())
    return slope, 1 - float((rest**2).sum() / ((y - y.mean()) ** 2).sum())


def draw(times: dict[tuple[int, int], float], memory: dict[tuple[int, int], float], out: Path) -> None:
    """Plots time and memory against the number of thoughts and against the length."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    rows = [
        ([(360, n) for n in THOUGHTS], 1, "thoughts, at 360 tokens"),
        ([(n, 6) for n in LENGTHS], 0, "tokens, 6 thoughts"),
    ]
    for axis, (settings, place, label) in zip(axes, rows, strict=True):
        x = [setting[place] for setting in settings]
        shown = ((axis, times, "o-", "#0072b2", "seconds"), (axis.twinx(), memory, "s--", "#d55e00", "MB kept"))
        for scale, values, marks, color, what in shown:
            y = [values[setting] for setting in settings]
            scale.plot(x, y, marks, color=color)
            scale.set_ylim(0, 1.1 * max(y))
            scale.set_ylabel(f"{what}, 8 sequences", color=color)
        axis.set_xlabel(label)
    figure.suptitle("An update grows linearly with thoughts, nearly so with length")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
