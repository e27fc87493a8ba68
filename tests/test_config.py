"""Configurations are complete, frozen and described; values that cannot work are refused with what to set."""

from typing import Any, get_args

import pytest
from making_config import composed, config
from pydantic import BaseModel, ValidationError

from coconut_ds.errors import ConfigError
from coconut_ds.methods import METHODS
from coconut_ds.methods.parallel import Parallel
from coconut_ds.settings import Config, EvalConfig, ProbeConfig
from coconut_ds.settings.compose import (
    parse_arguments,
)
from coconut_ds.settings.data import SOURCES
from coconut_ds.settings.schema import leaf_keys


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"method.kind": "cott"},
            ["method.kind: found 'cott'", "unknown method", ", ".join(sorted(METHODS))],
        ),
        ({"data.kind": "web"}, ["data.kind: found 'web'", "unknown data source", ", ".join(SOURCES)]),
        ({"training.num_epochs": "many"}, ["training.num_epochs: found 'many'", "valid integer"]),
        ({"training.num_epochs": True}, ["training.num_epochs: found True", "valid integer"]),
        ({"training.lr": True}, ["training.lr: found True", "valid number"]),
        ({"training.num_epochs": 1.5}, ["training.num_epochs: found 1.5", "valid integer"]),
        ({"run.debug": "maybe"}, ["run.debug: found 'maybe'", "valid boolean"]),
        ({"run.name": "a/b"}, ["run.name: found 'a/b'"]),
        ({"training.lr": 0}, ["training.lr: found 0", "greater than 0"]),
        ({"training.advance_at": 1.5}, ["training.advance_at: found 1.5", "less than or equal to 1"]),
        ({"training.reset_optimizer": "often"}, ["training.reset_optimizer: found 'often'", "'stage'", "'never'"]),
        ({"training.unknown": 1}, ["training.unknown", "not permitted"]),
        ({"data.num_nodes": [5, 4]}, ["data.num_nodes: found [5, 4]", "[smallest, largest]"]),
        (
            {"training.uniform_prob": 0.1, "training.replay_prob": 0.2},
            ["uniform_prob=0.1 and replay_prob=0.2", "set one of them to 0"],
        ),
        (
            {"training.max_epochs_per_stage": 1, "training.min_epochs_per_stage": 2},
            ["max_epochs_per_stage=1", "min_epochs_per_stage=2"],
        ),
        ({"training.stage_switches": [3, 2]}, ["stage_switches=[3, 2]", "must not decrease"]),
        (
            {"run.only_eval": True},
            ["run.load_model_path: found null", "run.only_eval=true", "set load_model_path=PATH"],
        ),
        (
            {"run.only_eval": True, "run.load_model_path": "P", "data.test_path": None, "data.val_path": None},
            ["data.test_path: found null", "set data.test_path=FILE"],
        ),
        ({"data.train_path": None}, ["data.train_path: found null", "set data.train_path=FILE"]),
        ({"data.val_path": None}, ["data.val_path: found null", "set data.val_path=FILE"]),
        ({"run.resume": 50}, ["run.resume=50", "training.num_epochs=50", "below 50", "above 50"]),
        (
            {"objective.kind": "codi", "method.kind": "cot"},
            ["objective.kind=codi", "method.kind=cot", "set method=coconut_no_curriculum", "objective=likelihood"],
        ),
        (
            {"objective.kind": "codi", "data.format": "symbolic", "training.advance": "epochs"},
            ["objective.kind=codi", "data.format=symbolic", "method.kind=coconut", "set method=coconut_no_curriculum"],
        ),
        (
            {"objective.feed": "projection", "method.kind": "pause_as_thought"},
            ["objective.feed=projection", "method.kind=pause_as_thought", "set objective.feed=identity"],
        ),
        (
            {"method.thinking": "jacobi", "method.iterations": None},
            ["iterations=null", "found jacobi", "set method.iterations to a number"],
        ),
        *(
            (
                {"objective.kind": "lotus", "method.kind": kind},
                [f"method.kind={kind} has no thoughts", "method=coconut"],
            )
            for kind in ("cot", "no_thoughts", "pause_as_thought")
        ),
        (
            {"objective.kind": "lotus", "training.c_thought": 0, "training.max_latent_stage": 0},
            ["training.c_thought=0", "training.c_thought=13", "training.max_latent_stage=0"],
        ),
        (
            {"objective.codi": {"gamma": 20.0}, "objective.feed_width": 8},
            [
                "objective.codi.gamma=20.0",
                "objective=codi or objective=sim_cot_codi",
                "objective.codi.gamma=1.0",
                "feed_width=8",
            ],
        ),
        (
            {"objective.kind": "sim_cot", "objective.lotus": {"flat": True}},
            ["objective.lotus.flat=True: objective.kind=sim_cot does not read this; set objective=lotus, or"],
        ),
        (
            {"objective.feed": "projection", "training.c_thought": 0},
            ["objective.feed=projection", "with training.c_thought=0 there are none", "set objective.feed=identity"],
        ),
        (
            {"objective.kind": "lotus", "objective.lotus": {"in_loop": True, "flat": True}},
            ["lotus.in_loop=true", "lotus.flat=true", "found sequential", "set method.thinking=looped"],
        ),
        (
            {"objective.kind": "lotus", "objective.lotus": {"in_loop": True}, "method.thinking": "looped"},
            ["method.iterations=3", "training.max_latent_stage=6", "set method.iterations=null"],
        ),
        ({"model.model_init": "pretrained"}, ["model_config_overrides", "model.model_init=scratch"]),
        (
            {"model.model_init": "pretrained", "model.model_config_overrides": {}, "model.tokenizer": "dataset"},
            ["tokenizer=dataset", "model.tokenizer=null"],
        ),
    ],
)
def test_values_that_cannot_work_are_refused_with_key_found_and_expected(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(changes)
    assert [word for word in words if word not in str(caught.value)] == []


def test_all_invalid_values_are_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        config({"run.seed": "x", "training.lr": -1, "method.kind": "y"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["run.seed", "method.kind", "training.lr"]


def test_only_eval_needs_no_training_files_and_ignores_resume() -> None:
    only_eval = {"run.only_eval": True, "run.load_model_path": "P", "run.resume": 50}
    assert config({**only_eval, "data.train_path": None, "data.val_path": None}).run.resume == 50


def test_a_configuration_is_frozen() -> None:
    made = composed()
    with pytest.raises(ValidationError, match="frozen"):
        made.training.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        made.run = made.run


@pytest.mark.parametrize("schema", [Config, EvalConfig, ProbeConfig])
def test_every_key_has_a_description_and_help_shows_it(
    schema: type[BaseModel], capsys: pytest.CaptureFixture[str]
) -> None:
    def described(model: type[BaseModel]) -> list[str | None]:
        texts: list[str | None] = []
        for field in model.model_fields.values():
            # An optional group is a group too.
            kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
            groups = [kind for kind in kinds if issubclass(kind, BaseModel)]
            if groups:
                texts += described(groups[0])
            else:
                texts.append(field.description)
        return texts

    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--help-all"], schema, "usage")
    shown = capsys.readouterr().out
    texts = described(schema)
    assert len(texts) == len(leaf_keys(schema)) > 10
    assert all(texts)
    assert [key for key in leaf_keys(schema) if f"  {key}: " not in shown] == []


def test_only_kind_is_a_key_of_two_groups() -> None:
    keys = [key.split(".", 1)[1] for key in leaf_keys(Config)]
    assert {key for key in keys if keys.count(key) > 1} == {"kind"}


def test_lotus_thinks_in_rounds_unless_told_otherwise() -> None:
    assert composed("objective=lotus", "c_thought=4").parallel == Parallel("looped", None, 4)
    assert composed("objective=lotus", "thinking=jacobi", "iterations=2").parallel == Parallel("jacobi", 2, 1)
    assert composed("objective=lotus", "thinking=sequential").parallel is None
    large = composed("objective=lotus", "training=gsm_lotus_llama", "data=gsm_file")
    assert large.parallel == Parallel("looped", None, 25)
    assert large.run.bf16
