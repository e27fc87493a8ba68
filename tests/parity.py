"""Compares this project's latent loop with numbers recorded from the public implementation.

    python tests/parity.py DIR

DIR holds a Hugging Face model, ``expected.json``, ``case_*.safetensors`` and ``train_batch.safetensors``: inputs, loss,
gradient norms, logits at labelled positions, greedy generations and a loss curve under AdamW. Prints the largest error
of each kind. The exit code is 0 only if all are within 1e-4 (relative for gradient norms) and all generations agree.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss

TOLERANCE = 1e-4


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


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "expected.json").is_file():
        raise SystemExit("usage: python tests/parity.py DIR   (DIR holds expected.json, a model and its cases)")
    errors = measure(Path(sys.argv[1]))
    for kind, error in errors.items():
        print(f"{kind:>30}: {error:.2e}")
    worst = max(errors.values())
    print(f"{'largest':>30}: {worst:.2e} ({'within' if worst <= TOLERANCE else 'NOT within'} {TOLERANCE:.0e})")
    raise SystemExit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
