"""Trains one tiny experiment under several ZeRO stages in one process group and records what came out.

    deepspeed --num_accelerators 2 tests/zero_worker.py OUT.json FOLDER

Started by ``test_engine.py``; rank 0 writes, for each variant, losses of all updates, evaluations, and the weights'
checksums; then what happened when loss or gradients were made non-finite on one rank.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file

import coconut_ds.engine as engine_module
from coconut_ds.compose import compose_config
from coconut_ds.data.batches import BatchGeometry
from coconut_ds.distributed import Ranks
from coconut_ds.engine import Engine, start_ranks, stop_ranks
from coconut_ds.errors import NonFiniteError
from coconut_ds.layout import IGNORE, Layout
from coconut_ds.metrics import read_metrics
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.tokens import build_word_tokenizer
from coconut_ds.training import train

OVERRIDES = [
    "run=demo",
    "data=modular_sum",
    "model=gpt2_scratch_tiny",
    "tokenizer=dataset",
    "model.model_config_overrides.n_embd=32",
    "training=demo",
    "advance=epochs",
    "c_thought=1",
    "max_latent_stage=3",
    "epochs_per_stage=2",
    "num_epochs=6",
    "size.train=88",
    "size.valid=17",
    "size.test=10",
    "global_batch_size=32",
    "batch_size_training=8",
    "batch_size_eval=8",
    "pad_latent_to_max=false",
]
"""18 updates over stages 0, 1 and 2 with replayed stages; 32 + 32 + 24 problems an epoch, so the last update of an
epoch leaves the second of two ranks without problems in its last micro step; 17 validation problems leave it without
any in its last batch."""
NOTHING_KEPT = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
}


def overrides_of(variant: str, folder: Path) -> list[str]:
    """The command line of one variant; ``zero3_live0`` gets a file of its own."""
    name = variant.removesuffix("_bf16")
    if name == "zero3_live0":
        path = folder / "zero3_live0.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 3, **NOTHING_KEPT}}))
        name, choice = variant, [f"deepspeed.config={path}"]
    else:
        choice = [f"deepspeed={name}"]
    bf16 = ["bf16=true"] if variant.endswith("_bf16") else []
    return [*OVERRIDES, *choice, *bf16, f"save_path={folder / variant}"]


def record(variant: str, folder: Path, ranks: Ranks) -> dict:
    """Trains one variant."""
    run = train(compose_config(overrides_of(variant, folder)), ranks)
    ranks.wait()
    lines = read_metrics(run.metrics)
    summary = json.loads(run.summary.read_text()) if ranks.is_first else {"last_checkpoint": None}
    return {
        "losses": [line["train/loss"] for line in lines if "train/loss" in line],
        "grad_norms": [line["train/grad_norm"] for line in lines if "train/loss" in line],
        "stages": [line["train/stage"] for line in lines if "train/loss" in line],
        "evaluations": [[line["eval/loss"], line["eval/accuracy"]] for line in lines if "eval/loss" in line],
        "checkpoint": summary["last_checkpoint"],
    }


class NotANumberBackwards(torch.autograd.Function):
    """Keeps the value, spoils the gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def spoil(zero: str, what: str, ranks: Ranks) -> dict:
    """One good update, then one whose loss or gradient is not finite on the last rank only."""
    config = compose_config([*OVERRIDES, f"deepspeed={zero}"])
    torch.manual_seed(0)
    backbone = build_backbone(config.model, build_word_tokenizer(["1 2 3 4"]))
    geometry = BatchGeometry(2 * ranks.size, 2, 1, ranks.size)
    engine = Engine(LatentLoop(backbone.model), config, geometry, ranks)
    layout = Layout([2, 3, 4, 5], [IGNORE, IGNORE, 4, 5], 4, 0)
    share = 1 / (2 * ranks.size)
    good = [collate([layout], [share], 0, 0)]
    engine.update(good, 1e-3)
    before = engine.model_state()
    last = ranks.rank == ranks.size - 1
    batch = [collate([layout], [float("inf") if last and what == "loss" else share], 0, 0)]
    if what == "gradient" and last:
        engine_module.latent_loss = lambda *arguments: NotANumberBackwards.apply(latent_loss(*arguments))
    try:
        engine.update(batch, 1e-3)
        error = "no error"
    except NonFiniteError as found:
        error = str(found)
    finally:
        engine_module.latent_loss = latent_loss
    after = engine.model_state()
    return {"error": error, "moved": any(not torch.equal(before[name], after[name]) for name in before)}


def main() -> None:
    """Command line."""
    # The launcher puts --local_rank in front.
    out, folder = (Path(argument) for argument in sys.argv[-2:])
    ranks = start_ranks(timeout=timedelta(minutes=2))
    variants = ["zero0", "zero1", "zero2", "zero3", "zero3_live0", "zero2_bf16"]
    result: dict = {variant: record(variant, folder, ranks) for variant in variants}
    if ranks.is_first:
        weights = {name: load_file(Path(result[name]["checkpoint"]) / "model.safetensors") for name in variants}
        for name in variants:
            result[name]["weights_off"] = max(
                float((weights[name][key].float() - value).abs().max()) for key, value in weights["zero0"].items()
            )
            result[name]["dtype"] = str(next(iter(weights[name].values())).dtype)
    for zero in ("zero0", "zero1", "zero2", "zero3"):
        result[f"spoiled_{zero}"] = {what: spoil(zero, what, ranks) for what in ("loss", "gradient")}
    errors = ranks.gather([result[f"spoiled_{zero}"] for zero in ("zero0", "zero1", "zero2", "zero3")])
    result["same_on_all_ranks"] = all(other == errors[0] or ranks.size == 1 for other in errors)
    if ranks.is_first:
        out.write_text(json.dumps(result))
    stop_ranks()


if __name__ == "__main__":
    main()
