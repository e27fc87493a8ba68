"""Compares this project with numbers recorded from public implementations.

    python tests/parity.py DIR

DIR is a folder with ``expected.json``, or has such folders below it. There are two kinds:

* Coconut: a Hugging Face model, ``case_*.safetensors`` and ``train_batch.safetensors``: inputs, loss, gradient norms,
  logits at labelled positions, greedy generations and a loss curve under AdamW, compared with the latent loop. Errors
  may be 1e-4 (relative for gradient norms).
* CODI, SIM-CoT and LOTUS (``recorded_objectives.py``): the parts of the loss, norms of gradients and greedy tokens,
  compared with what ``CHECKED`` says. Relative differences may be 1e-4; no token may differ.

Prints the largest error of each kind. The last line is ``OK``, or the largest difference that is not tolerated, and the
exit code is then 1.
"""

import json
import sys
from pathlib import Path

import torch
from comparing_objectives import Implementation, compare_all
from recorded_codi import RecordedCodi
from recorded_lotus import RecordedLotus
from recorded_objectives import SOURCES, Recording
from recorded_sim_cot import RecordedSimCot
from recorded_twins import Twins
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss

TOLERANCE = 1e-4
CHECKED: dict[str, Implementation] = {
    **dict.fromkeys(SOURCES.values(), Twins()),
    "codi": RecordedCodi(),
    "lotus": RecordedLotus(),
    "sim_cot_on_codi": RecordedSimCot(),
    "sim_cot_on_coconut": RecordedSimCot(),
}
"""For each objective, the implementation that is compared."""


def layouts_of(batch: dict[str, torch.Tensor], latent_id: int) -> list[Layout]:
    """The rows of a recorded, padded batch."""
    rows = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        kept = ids[mask.bool()].tolist()
        count = kept.count(latent_id)
        first = kept.index(latent_id) if count else len(kept)
        rows.append(Layout(kept, labels[mask.bool()].tolist(), first, count))
    return rows


def batch_of(layouts: list[Layout]):
    """Collates the rows so that the loss is the mean over the batch's target tokens."""
    total = sum(layout.num_targets for layout in layouts)
    thoughts = max(layout.num_thoughts for layout in layouts)
    return collate(layouts, [1 / total] * len(layouts), thoughts, pad_id=0)


def check_case(folder: Path, case: dict, ids: dict[str, int], errors: dict[str, float]) -> None:
    """Compares loss, logits, gradients and generations of one recorded batch."""
    loop = load(folder)
    recorded = load_file(folder / f"case_{case['name']}.safetensors")
    layouts = layouts_of(recorded, ids["latent"])
    inputs, targets = batch_of(layouts)
    states = loop.encode(inputs).flatten(0, 1)[targets.index]
    shifted = recorded["labels"][:, 1:] != IGNORE
    note(errors, "logits", (loop.head(states) - recorded["logits"][:, :-1][shifted]).abs().max())
    loss = latent_loss(loop, inputs, targets)
    note(errors, "loss", abs(loss.item() - case["loss"]))
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in loop.model.named_parameters() if p.grad is not None}
    missing = case["grad_norms"].keys() ^ norms.keys()
    if missing:
        raise SystemExit(f"{folder}: gradients of different parameters: {sorted(missing)}")
    for name, norm in case["grad_norms"].items():
        note(errors, "gradient norms (relative)", abs(norms[name] - norm) / max(norm, 1e-6))
    for expected in case["generate"]:
        note(errors, "generated tokens that differ", differing(loop, expected, ids))


def differing(loop: LatentLoop, expected: dict, ids: dict[str, int]) -> float:
    """Number of tokens of a greedy continuation that differ from the recorded ones.

    One difference is intended: here an end-of-sequence token ends the answer even if it comes first; there it did not.
    """
    prompt, wanted = expected["prompt"], expected["new_tokens"]
    count = prompt.count(ids["latent"])
    first = prompt.index(ids["latent"]) if count else len(prompt)
    layout = Layout(prompt, [IGNORE] * len(prompt), first, count)
    made = generate(loop, [Request(layout, len(wanted))], [ids["eos"]])[0].tokens
    if wanted[0] == ids["eos"]:
        wanted = wanted[:1]
    return float(sum(a != b for a, b in zip(made, wanted, strict=False)) + abs(len(made) - len(wanted)))


def check_curve(folder: Path, training: dict, ids: dict[str, int], errors: dict[str, float]) -> None:
    """Compares the losses of a few AdamW updates on one batch."""
    loop = load(folder)
    optimizer = torch.optim.AdamW(loop.parameters(), lr=1e-3, weight_decay=0.01)
    inputs, targets = batch_of(layouts_of(load_file(folder / "train_batch.safetensors"), ids["latent"]))
    for wanted in training["loss_before_each_step"]:
        loss = latent_loss(loop, inputs, targets)
        note(errors, "loss curve", abs(loss.item() - wanted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def load(folder: Path) -> LatentLoop:
    """The recorded model."""
    return LatentLoop(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def note(errors: dict[str, float], kind: str, error: float | torch.Tensor) -> None:
    """Keeps the largest error of a kind."""
    errors[kind] = max(errors.get(kind, 0.0), error.item() if isinstance(error, torch.Tensor) else error)


def measure(folder: Path) -> dict[str, float]:
    """The largest error of each kind."""
    expected = json.loads((folder / "expected.json").read_text())
    errors: dict[str, float] = {}
    for case in expected["cases"]:
        check_case(folder, case, expected["token_ids"], errors)
    check_curve(folder, expected["training"], expected["token_ids"], errors)
    return errors


def coconut_excess(folder: Path) -> tuple[float, str]:
    """Compares a folder of the first kind and prints the errors.

    Returns the largest error as a multiple of what is tolerated, and a line that describes it.
    """
    errors = measure(folder)
    for kind, error in errors.items():
        print(f"{kind:>30}: {error:.2e}")
    worst = max(errors, key=lambda kind: errors[kind])
    within = errors[worst] <= TOLERANCE
    print(f"{'largest':>30}: {errors[worst]:.2e} ({'within' if within else 'NOT within'} {TOLERANCE:.0e})")
    return errors[worst] / TOLERANCE, f"{folder.name}: {worst}: {errors[worst]:.2e}, tolerated are {TOLERANCE:.0e}"


def objective_excess(recording: Recording) -> tuple[float, str]:
    """The same for a folder of the second kind."""
    found = compare_all(CHECKED[recording.objective], recording)
    for kind, difference in found.worst.items():
        print(f"{kind:>30}: {difference.size:.2e}  {difference.place}")
    if found.left_out:
        print(f"{'not offered':>30}: {', '.join(found.left_out)}")
    return found.excess()


def main() -> None:
    """Command line."""
    folders = sorted(path.parent for path in Path(sys.argv[-1]).rglob("expected.json")) if len(sys.argv) == 2 else []
    if not folders:
        raise SystemExit("usage: python tests/parity.py DIR   (DIR, or folders below it, hold expected.json)")
    excesses = []
    for folder in folders:
        print(f"{folder}:")
        recording = Recording(folder)
        excesses.append(objective_excess(recording) if recording.is_one else coconut_excess(folder))
    factor, line = max(excesses)
    print(line if factor > 1 else "OK")
    raise SystemExit(1 if factor > 1 else 0)


if __name__ == "__main__":
    main()
