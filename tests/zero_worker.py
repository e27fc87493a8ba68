"""Trains one tiny experiment under several ZeRO stages in one process group and records what came out.

    deepspeed --num_accelerators 2 tests/zero_worker.py OUT.json FOLDER

Started by ``test_engine.py``. Rank 0 writes for each variant the losses and gradient norms of all updates, the
evaluations, and how far the weights are from those of ZeRO stage 0; the errors after loss or gradients were made
non-finite on one rank; how models that were built in shards compare with models built whole; and the number of bytes
that a rank holds of a model.
"""

import json
import os
import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_models import SHAPES
from zero_feeds import VARIANTS, fed
from zero_spoiled import LAYOUT, some_engine, spoil

from coconut_ds.data.sources import open_source
from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.distributed.process_group import start_ranks, stop_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import is_sharded
from coconut_ds.files import write_whole
from coconut_ds.model.backbone import model_from_scratch
from coconut_ds.model.collate import collate
from coconut_ds.model.digest import digest_parameters
from coconut_ds.model.starting import starting_backbone
from coconut_ds.settings import Config, ModelConfig
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine_file import engine_values
from coconut_ds.training.launch import train
from coconut_ds.training.metrics import read_metrics

OVERRIDES = [
    "run=demo",
    "data=modular_sum",
    "num_terms=3",
    "model=gpt2_scratch_tiny",
    "tokenizer=dataset",
    "model.model_config_overrides.n_embd=32",
    "training=demo",
    "advance=epochs",
    "c_thought=2",
    "max_latent_stage=3",
    "stage_switches=[1]",
    "num_epochs=3",
    "save_every=9",
    "size.train=56",
    "size.valid=9",
    "size.test=10",
    "global_batch_size=32",
    "batch_size_training=8",
    "batch_size_eval=8",
    "pad_latent_to_max=false",
    "max_new_tokens=4",
]
"""Six updates in epochs of the stages 0, 1 and 1: the optimizer is reset before the second epoch, and the third epoch
continues with its state. In stage 1 problems have two thoughts, or none where they replay stage 0. With 32 + 24
problems per epoch, the second of two ranks has no problems in the last micro step of an epoch's last update; with 9
validation problems, it has none in its last batch."""
SHORT = ["c_thought=1", "num_epochs=2", "size.train=40", "size.valid=3", "max_new_tokens=2"]
"""Four updates: two without thoughts and two with one thought."""
FAMILIES = ("llama", "qwen3")
"""With an untied head, and with a head tied to the embedding."""
LORA = ["lora.rank=2", "lora.alpha=8"]
CODI = ["objective=sim_cot_codi", "feed_width=16", "sim_cot.decoder_layers=1"]
"""With all of CODI's parts, and an auxiliary decoder."""
SUPERVISED = ["objective=supervised_thoughts", "supervised_thoughts.thought_targets=path"]
GRPO = [
    *("objective=grpo", "replay_prob=0", "grpo.num_generations=3", "grpo.num_iterations=2", "grpo.beta=0.5"),
    *("grpo.exploration=svp", "grpo.svp_renew=2", "grpo.reward=making_rewards:brevity", "global_batch_size=8"),
    *("stage_switches=null", "max_latent_stage=1", "num_epochs=1", "size.train=20", "batch_size_eval=24"),
]
"""Three updates, on the completions of 8, 8 and 4 problems: several micro batches even on each of two ranks. All
completions of an update, each with one thought, are sampled at the same time."""
LONG_VARIANTS = ("zero0", "zero1", "zero2", "zero3", "zero3_live0", "zero2_bf16")
"""``live0``: DeepSpeed releases every weight after each use of its module. ``held0``: every weight is gathered for each
update and held. In ``zero3`` these weights are so small that DeepSpeed never releases them."""
ZERO = ("zero0", "zero1", "zero2", "zero3_held0")
SUPERVISED_ZERO = ("zero0", "zero2", "zero3_held0")
GRPO_ZERO = ("zero0", "zero2", "zero3_held0", "zero3_live0")
OFFLOAD = ("zero2_offload", "zero3_offload")
SHORT_VARIANTS = (
    *(f"{zero}_{family}" for family in FAMILIES for zero in ZERO),
    *(f"{zero}_llama_lora" for zero in (*ZERO, "zero3_live0")),
    *(f"{zero}_llama_codi" for zero in ZERO),
    *(f"{zero}_llama_supervised" for zero in SUPERVISED_ZERO),
    *(f"{zero}_llama_grpo" for zero in GRPO_ZERO),
    *(f"{zero}_qwen3" for zero in OFFLOAD),
)
SAVED = "zero2"
"""The variant that also saves a checkpoint within an epoch, before the last update."""
RESUMED = "zero3_held0_llama_lora"
NOTHING_KEPT = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
}


def family_overrides(family: str, folder: Path) -> list[str]:
    """A short run from the weights of ``write_family``."""
    return [*OVERRIDES, *SHORT, f"load_model_path={folder / family}"]


def config_of(variant: str, folder: Path, place: str, epochs: int | None) -> Config:
    """The configuration of one variant, which trains for another number of epochs if one is given.

    Variants with ``live0`` or ``held0`` get an engine file of their own.
    """
    zero, *rest = variant.replace("_offload", "-offload").split("_")
    family = next((name for name in FAMILIES if name in rest), None)
    engine_file = zero.replace("-", "_")
    holds = "live0" not in rest
    if not holds or "held0" in rest:
        path = folder / f"{variant}.json"
        # Every rank writes it, while another may read it.
        write_whole(path, json.dumps({"zero_optimization": {"stage": 3, **NOTHING_KEPT}}))
        engine_file = str(path)
    base = family_overrides(family, folder) if family else OVERRIDES
    parts = (("bf16", ["bf16=true"]), ("lora", LORA), ("codi", CODI), ("supervised", SUPERVISED), ("grpo", GRPO))
    config = composed(*base, *(word for name, words in parts if name in rest for word in words))
    run = config.run.model_copy(update={"save_path": str(folder / place)})
    save_every = 5 if variant == SAVED else None
    lengths = {"num_epochs": epochs or config.training.num_epochs, "save_every_steps": save_every}
    training = config.training.model_copy(update=lengths)
    return with_engine(config.model_copy(update={"run": run, "training": training}), engine_file, holds)


def with_engine(config: Config, engine_file: str, holds: bool = True) -> Config:
    """What ``deepspeed=NAME`` or ``deepspeed.config=FILE`` changes, without composing the configuration again."""
    changed = {"config": engine_file, "hold_weights": holds}
    return config.model_copy(update={"deepspeed": config.deepspeed.model_copy(update=changed)})


@cache
def composed(*overrides: str) -> Config:
    return compose_config(overrides)


def write_family(family: str, folder: Path) -> None:
    """Saves a random model without the markers, as a folder as others publish them and as a state dict."""
    config = composed(*OVERRIDES)
    tokenizer = build_word_tokenizer(open_source(config.data, config.run.seed).vocabulary())
    overrides = {**SHAPES[family], "initializer_range": 0.2}
    settings = ModelConfig(model_id=family, model_init="scratch", model_config_overrides=overrides)
    torch.manual_seed(0)
    model = model_from_scratch(settings, tokenizer, len(tokenizer))
    model.save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    torch.save(model.state_dict(), folder / f"{family}.pt")


def record(variant: str, folder: Path, ranks: Ranks, place: str | None = None, epochs: int | None = None) -> dict:
    """Trains one variant and reads its record. ``place`` is the folder of its run, by default its name."""
    run = train(config_of(variant, folder, place or variant, epochs), ranks)
    ranks.wait()
    lines = read_metrics(run.metrics)
    summary = json.loads(run.summary.read_text()) if ranks.is_first else {"last_checkpoint": None}
    return {
        "losses": [line["train/loss"] for line in lines if "train/loss" in line],
        "grad_norms": [line["train/grad_norm"] for line in lines if "train/loss" in line],
        "masses": [line.get("train/hop_1_mass") for line in lines if "train/loss" in line],
        "rewards": [line["train/reward"] for line in lines if "train/reward" in line],
        "stages": [line["train/stage"] for line in lines if "train/loss" in line],
        "evaluations": [[line["eval/loss"], line["eval/accuracy"]] for line in lines if "eval/loss" in line],
        "checkpoint": summary["last_checkpoint"],
        "checkpoints": sorted(path.name for path in run.metrics.parent.glob("checkpoint_*")),
    }


def build(family: str, folder: Path, ranks: Ranks) -> dict:
    """Builds a model in shards and whole, from each source of weights, and compares them."""
    found = {}
    base, weights = composed("data=modular_sum", "model=gpt2_pretrained", "deepspeed=zero3"), str(folder / family)
    scratch = {"model_id": family, "model_init": "scratch", "tokenizer": "dataset"}
    for way, run, model in (
        ("run.load_model_path, a folder", {"load_model_path": weights}, {}),
        (
            "run.load_model_path, a file",
            {"load_model_path": f"{weights}.pt"},
            {**scratch, "model_config_overrides": SHAPES[family]},
        ),
        ("model.model_id", {}, {"model_id": weights}),
    ):
        changed = {"run": base.run.model_copy(update=run), "model": base.model.model_copy(update=model)}
        config = base.model_copy(update=changed)
        source = open_source(config.data, config.run.seed)
        values = engine_values(config, BatchGeometry(2 * ranks.size, 2, 1, ranks.size), ranks.size)
        sharded = starting_backbone(config, source, values).model
        # The engine shards the embedding, which got rows for the markers, later.
        whole = [name for name, parameter in sharded.named_parameters() if not is_sharded(parameter)]
        content = digest_parameters(sharded, ranks)
        plain = starting_backbone(config, source).model
        found[way] = {
            "whole": whole,
            "same": content == digest_parameters(plain, ranks),
            "others_are_whole": not any(map(is_sharded, plain.parameters())),
        }
    return found


def held(ranks: Ranks) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state that this rank holds between two updates under ZeRO-3."""
    config = with_engine(composed(*OVERRIDES, "model.model_config_overrides.n_embd=64"), "zero3")
    engine = some_engine(config, ranks)
    engine.update([collate([LAYOUT], [1 / ranks.size], 0, 0)], 1e-3)
    inner = engine._engine.optimizer
    states = [value for state in inner.optimizer.state.values() for value in state.values()]
    kept = {
        "weights": [parameter.ds_tensor for parameter in engine._engine.module.parameters()],
        "gradients": [inner.grad_partitions_flat_buffer],
        "optimizer": [*inner.fp32_partitioned_groups_flat, *(value for value in states if value.dim())],
    }
    return {name: sum(tensor.numel() * tensor.element_size() for tensor in kept[name]) for name in kept}


def main() -> None:
    """Command line."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    # Tensors are tiny, so a second thread costs more time than it saves.
    torch.set_num_threads(1)
    # The launcher inserts --local_rank before the other arguments.
    out, folder = (Path(argument) for argument in sys.argv[-2:])
    ranks = start_ranks(timeout=timedelta(minutes=2))
    if ranks.is_first:
        for family in FAMILIES:
            write_family(family, folder)
    ranks.wait()
    result: dict = {variant: record(variant, folder, ranks) for variant in (*LONG_VARIANTS, *SHORT_VARIANTS)}
    # The same run once more in another folder, with a launch for each of its two epochs.
    for epochs in (1, 2):
        result["resumed"] = record(RESUMED, folder, ranks, "resumed", epochs)
    result["built"] = {family: build(family, folder, ranks) for family in FAMILIES}
    result["held"] = held(ranks)
    result["fed"] = {
        name: fed(config_of(name, folder, "fed", None), folder / f"{name}_fed", ranks) for name in VARIANTS
    }
    if ranks.is_first:
        weights = {name: load_file(Path(result[name]["checkpoint"]) / "model.safetensors") for name in LONG_VARIANTS}
        for name in LONG_VARIANTS:
            result[name]["weights_off"] = max(
                float((weights[name][key].float() - value).abs().max()) for key, value in weights["zero0"].items()
            )
            result[name]["dtype"] = str(next(iter(weights[name].values())).dtype)
    for zero in ("zero0", "zero1", "zero2", "zero3"):
        config = with_engine(composed(*OVERRIDES), zero)
        result[f"spoiled_{zero}"] = {what: spoil(config, what, ranks) for what in ("loss", "gradient")}
    errors = ranks.gather([result[f"spoiled_{zero}"] for zero in ("zero0", "zero1", "zero2", "zero3")])
    result["same_on_all_ranks"] = all(other == errors[0] or ranks.size == 1 for other in errors)
    result["compiler_imported"] = "torch._inductor.compile_fx" in sys.modules
    if ranks.is_first:
        out.write_text(json.dumps(result))
    stop_ranks()


if __name__ == "__main__":
    main()
