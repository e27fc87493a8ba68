"""Rotary tables after a model was built in shards for bf16."""

from contextlib import contextmanager

import pytest
import torch
from tiny_models import SHAPES

from coconut_ds.data.sources import open_source
from coconut_ds.model import starting, tables
from coconut_ds.model.tables import recompute_tables
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config


def scratch(family: str) -> Config:
    """A small model with random weights."""
    shape = ",".join(f"{key}:{value}" for key, value in SHAPES[family].items())
    choice = ["model=gpt2_pretrained", f"model_id={family}", "model_init=scratch", "tokenizer=dataset"]
    return compose_config(["data=modular_sum", *choice, f"model.model_config_overrides={{{shape}}}"])


def round_buffers(model: torch.nn.Module) -> None:
    """What ``zero.Init`` for bf16 does to a model's tables."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.bfloat16())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_built_in_shards_has_the_tables_of_one_built_whole(monkeypatch, tmp_path, family):
    """And its weights, buffers of the state dict and outputs are not changed."""
    config = scratch(family)
    source = open_source(config.data, config.run.seed)
    torch.manual_seed(0)
    whole = starting.starting_backbone(config, source)
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    config = compose_config(["data=modular_sum", f"load_model_path={tmp_path}", "deepspeed=zero3"])
    load = starting.load_folder

    def load_in_bf16(*arguments, **options):
        backbone = load(*arguments, **options)
        round_buffers(backbone.model)
        return backbone

    @contextmanager
    def in_shards(values):
        monkeypatch.setattr(starting, "load_folder", load_in_bf16 if values else load)
        yield

    monkeypatch.setattr(starting, "in_shards", in_shards)
    sharded = starting.starting_backbone(config, source, {"zero_optimization": {"stage": 3}})
    tables = dict(whole.model.named_buffers())
    assert any("inv_freq" in name for name in tables)
    found = dict(sharded.model.named_buffers())
    assert found.keys() == tables.keys()
    for name, table in tables.items():
        assert found[name].dtype == table.dtype, name
        assert torch.equal(found[name], table), name
    ids = torch.arange(5)[None]
    assert torch.equal(sharded.model(ids).logits, whole.model(ids).logits)


def test_tables_are_computed_without_memory_for_the_weights(monkeypatch):
    """The second model, from which the tables are taken, has no parameters in memory."""
    config = scratch("llama")
    backbone = starting.starting_backbone(config, open_source(config.data, config.run.seed))
    built = []
    without_weights = tables._without_weights
    monkeypatch.setattr(tables, "_without_weights", lambda model: built.append(without_weights(model)) or built[0])
    recompute_tables(backbone.model)
    assert all(parameter.is_meta for parameter in built[0].parameters())
    assert not any(parameter.is_meta for parameter in backbone.model.parameters())
