"""The signature changes with everything that can change a result, and with nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.errors import ConfigError
from coconut_ds.runs.identity import (
    ABSENT,
    EARLIER_DEFAULTS,
    LATER_KEYS,
    NOT_A_NUMBER,
    IngredientDifference,
    differences,
    ingredients,
    read_ingredients,
    signature,
    write_ingredients,
)
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.settings.schema import leaf_keys

BASE = compose_config([])
ZERO = {"stage": 2, "reduce_bucket_size": 500_000_000}
FILE_CONTENT = {"train": "1", "val": "2"}
CODE_KEYS = ("commit", "difference", "version", "source")
GIVEN: dict[str, Any] = {
    "global_batch_size": 128,
    "engine_file": {"zero_optimization": ZERO, "prescale_gradients": False},
    "data": FILE_CONTENT,
    "weights": None,
    "tokenizer": "tokens",
    "code": {"commit": "c0ffee", "difference": ""},
    "batch": "32 × 4 × 1",
    "micro_batch": 32,
}
FREE = {
    *(f"run.{name}" for name in ("name", "save_path", "project", "wandb_entity", "wandb", "trackers", "log_every")),
    *(f"run.{name}" for name in ("save_only_improve", "only_eval", "async_save", "watchdog_s", "watchdog_ends")),
    *(f"run.{name}" for name in ("resume_mode", "resume_attempt_id", "allow_mismatch", "signature_ignore_keys")),
    *(f"training.{name}" for name in ("num_epochs", "save_every", "save_every_steps", "keep_last", "keep_best")),
    *(f"training.{name}" for name in ("batch_size_training", "batch_size_eval", "gradient_accumulation_steps")),
    *("training.activation_checkpointing", "training.defer_gradients", "deepspeed.hold_weights"),
    *(f"data.{name}" for name in ("cache_path", "made_by", "test_path")),
}
"""Every key that may differ between two launches of one run."""
REPLACED = {"data.train_path", "data.val_path", "run.load_model_path", "model.tokenizer", "deepspeed.config"}
"""Paths: the content of the files counts, not the path."""
OTHER_VALUES: dict[str, Any] = {
    "objective.grpo.max_completion_length": 9,
    "objective.grpo.epsilon_high": 0.3,
    "objective.feed_width": 96,
    "objective.sim_cot.decoder_layers": 2,
    "objective.sim_cot.decoder_width": 96,
    "run.load_model_path": "elsewhere",
    "run.resume_mode": "never",
    "run.resume_attempt_id": "20250101-000000-abcd",
    "run.allow_mismatch": ("training.lr",),
    "run.signature_ignore_keys": ("data.made_by",),
    "run.wandb_entity": "me",
    "training.defer_gradients": True,
    "run.wandb": "offline",
    "run.trackers": ("tensorboard",),
    "data.kind": "permutation_product",
    "data.train_path": "elsewhere",
    "data.val_path": "elsewhere",
    "data.test_path": "elsewhere",
    "data.made_by": "hand",
    "data.format": "symbolic",
    **dict.fromkeys(("data.num_nodes", "data.num_layers", "data.num_edges", "data.num_hops"), (5, 9)),
    "data.num_symbols": 50,
    "data.schedule": ({"kind": "modular_sum", "epochs": 2},),
    "data.wording": "arrows",
    "method.kind": "cot",
    "objective.kind": "codi",
    "objective.feed": "projection",
    "objective.codi.distance": "l2",
    "model.model_init": "pretrained",
    "model.model_config_overrides": {"n_layer": 99},
    "model.tokenizer": "elsewhere",
    "model.lora.targets": ("q_proj",),
    "training.advance": "accuracy",
    "training.max_epochs_per_stage": 9,
    "training.stop_at": 0.5,
    "training.stage_switches": (1, 2),
    "training.reset_optimizer": "never",
    "training.lr_schedule": "cosine",
    "training.lr_schedule_over": "stage",
    "training.loss_reduction": "reference",
    "training.gradient_accumulation_steps": 3,
    "training.save_every_steps": 9,
    "training.keep_last": 9,
}
"""Other values for keys whose type does not tell which values are allowed."""


def table(config: Config = BASE, **changes: Any) -> dict[str, Any]:
    return ingredients(config, **{**GIVEN, **changes})


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def with_value(model: Any, key: str, value: Any) -> Any:
    """``model`` with one key changed, without validation: here combinations need not be valid."""
    first, _, rest = key.partition(".")
    return model.model_copy(update={first: with_value(getattr(model, first), rest, value) if rest else value})


def config(**changes: Any) -> Config:
    changed = BASE
    for key, value in changes.items():
        changed = with_value(changed, key.replace("__", "."), value)
    return changed


def engine(**changes: Any) -> dict[str, Any]:
    return {"zero_optimization": {**ZERO, **changes}, "prescale_gradients": False}


def other(key: str) -> Any:
    value = value_of(BASE, key)
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(each / 2 if isinstance(each, float) else each + 1 for each in value)
    return value + (1 if isinstance(value, int) else 0.125 if isinstance(value, float) else "x")


@pytest.mark.parametrize("key", leaf_keys(Config))
def test_a_key_counts_unless_it_is_listed_or_replaced_by_content(key: str) -> None:
    """A key that counts is ignored if the user lists it in signature_ignore_keys."""
    changed = with_value(BASE, key, other(key))
    assert value_of(changed, key) != value_of(BASE, key)
    # The effective batch size is passed separately.
    free = key in FREE or key in REPLACED or key == "training.global_batch_size"
    assert (signature(table(changed, weights="w")) == signature(table(weights="w"))) == free
    # With these, the micro batch counts too, which is another key to ignore.
    if not free and key not in ("training.loss_reduction", "objective.kind"):
        pair = [table(with_value(one, "run.signature_ignore_keys", (key,)), weights="w") for one in (BASE, changed)]
        assert pair[0] == pair[1]


def test_every_listed_key_exists() -> None:
    assert {*NOT_A_NUMBER, *LATER_KEYS} <= set(leaf_keys(Config))


@pytest.mark.parametrize("key", [*LATER_KEYS, "model.fused_kernels"])
def test_a_key_that_older_versions_lack_counts_only_if_it_is_set(key: str) -> None:
    """At its default, a run that an older version began keeps its signature."""
    assert value_of(BASE, key) == LATER_KEYS[key]
    assert key not in table()
    assert table(with_value(BASE, key, other(key)))[key] == other(key)


def test_sizes_that_no_key_names_are_recorded_as_older_versions_did() -> None:
    """Those versions had one default for all kinds of data, which only one kind read."""
    for key, (value, kind) in EARLIER_DEFAULTS.items():
        for name in ("file", "synthetic", "prosqa_symbolic"):
            plain = config(data__kind=name)
            given = with_value(plain, key, tuple(value) if isinstance(value, list) else value)
            assert table(plain)[key] == value
            assert f"{key}_is_set" not in table(plain)
            assert (table(given) == table(plain)) == (name in ("file", kind))


def test_the_files_of_a_schedule_count_by_content() -> None:
    def recorded(path: str, **content: str) -> Any:
        entry = {"train_path": path, "val_path": "v.json", "epochs": 2}
        return table(config(data__schedule=(entry,)), schedule=[{"train": "1", "val": "2", **content}])

    assert recorded("here.json") == recorded("there.json") != recorded("here.json", train="3")


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("codi", {"codi"}),
        ("lotus", {"lotus"}),
        ("sim_cot", {"sim_cot"}),
        ("sim_cot_codi", {"sim_cot", "codi"}),
    ],
)
def test_keys_that_an_objective_reads_count_at_their_defaults_too(kind: str, groups: set[str]) -> None:
    """A later version may have other defaults."""
    parts = [key.split(".") for key in table(config(objective__kind=kind))]
    assert {
        group for first, group, *key in (part for part in parts if len(part) > 1) if first == "objective" and key
    } == groups


@pytest.mark.parametrize(
    ("base", "left", "right", "expected"),
    [
        (BASE, {}, {"global_batch_size": 64}, ["training.global_batch_size"]),
        (BASE, {}, {"tokenizer": "others"}, ["model.tokenizer_content"]),
        (BASE, {}, {"code": {"commit": "c0ffee", "difference": "1"}}, ["code.difference"]),
        (BASE, {}, {"code": {"version": "1", "source": "2"}}, [f"code.{name}" for name in CODE_KEYS]),
        (BASE, {"weights": "1"}, {"weights": "2"}, ["model.weights"]),
        (BASE, {}, {"data": {**FILE_CONTENT, "train": "3"}}, ["data.train_content"]),
        (BASE, {}, {"data": {**FILE_CONTENT, "val": "3"}}, ["data.val_content"]),
        (BASE, {}, {"batch": "16 × 4 × 2"}, []),
        (config(training__loss_reduction="reference"), {}, {"batch": "16 × 4 × 2"}, ["batch"]),
        # CODI's standard deviation is that of a micro batch.
        (BASE, {}, {"micro_batch": 16}, []),
        (config(objective__kind="codi"), {}, {"micro_batch": 16}, ["micro_batch"]),
        (config(objective__kind="codi", objective__codi__divide_by_std=False), {}, {"micro_batch": 16}, []),
        (BASE, {}, {"engine_file": engine(stage=3)}, ["deepspeed.file.zero_optimization.stage"]),
        # The same number spelt differently; but true is not 1.
        (BASE, {}, {"engine_file": engine(reduce_bucket_size=5e8)}, []),
        (BASE, {"engine_file": engine(a=True)}, {"engine_file": engine(a=1)}, ["deepspeed.file.zero_optimization.a"]),
    ],
)
def test_the_files_behind_the_configuration_count(
    base: Config, left: dict[str, Any], right: dict[str, Any], expected: list[str]
) -> None:
    one, two = table(base, **left), table(base, **right)
    assert [each.key for each in differences(one, two)] == expected
    assert (signature(one) == signature(two)) == (expected == [])


def test_the_length_of_a_run_counts_if_its_learning_rate_ends_with_it() -> None:
    for schedule, counts in (("constant", False), ("cosine", True), ("linear", True)):
        one, two = (config(training__lr_schedule=schedule, training__num_epochs=number) for number in (3, 4))
        assert (signature(table(one)) != signature(table(two))) == counts


def test_the_table_has_contents_for_paths_and_all_the_rest() -> None:
    """The complete table of ingredients if every key that can be a path is one."""
    found = table(config(run__load_model_path="w.bin"), weights="w")
    plain = set(leaf_keys(Config)) - FREE - REPLACED - {"model.model_config_overrides"} - set(LATER_KEYS)
    overrides = {f"model.model_config_overrides.{name}" for name in BASE.model.model_config_overrides}
    file = {f"deepspeed.file.{name}" for name in (*(f"zero_optimization.{key}" for key in ZERO), "prescale_gradients")}
    contents = {"data.train_content", "data.val_content", "model.weights", "model.tokenizer_content"}
    assert set(found) == plain | overrides | file | contents | {"code.commit", "code.difference"}
    assert found["training.lr"] == BASE.training.lr


def test_a_model_folder_counts_by_content_wherever_it_is(tmp_path: Path) -> None:
    """Two folders may have equal weights and different heads."""

    def folder(name: str, **values: Any) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_name_or_path": name, **values}))
        return str(tmp_path / name)

    here, there, heads = folder("here", n_head=4), folder("there", n_head=4), folder("heads", n_head=2)
    for key in ("model.model_id", "run.load_model_path"):
        one, two, three = (table(with_value(BASE, key, path), weights="w") for path in (here, there, heads))
        assert one == two
        assert [each.key for each in differences(one, three)] == ["model.architecture"]
        assert str(tmp_path) not in json.dumps(one)
    # A folder to start from replaces model_id, which is then not read.
    both = [config(run__load_model_path=here, model__model_id=path) for path in (there, heads)]
    assert table(both[0], weights="w") == table(both[1], weights="w")


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = table(config(training__betas=(0.5, 0.75)))
    write_ingredients(tmp_path, written)
    assert read_ingredients(tmp_path) == written
    assert signature(dict(reversed(read_ingredients(tmp_path).items()))) == signature(written)
    assert [path.name for path in tmp_path.iterdir()] == ["signature.json"]
    (tmp_path / "signature.json").write_text("{")
    with pytest.raises(ConfigError, match=r"signature.json: is not valid JSON"):
        read_ingredients(tmp_path)
    with pytest.raises(ConfigError, match=r"none/signature.json: cannot be read"):
        read_ingredients(tmp_path / "none")


def test_differences_are_listed_by_group_and_show_absent_keys() -> None:
    left = {"run.seed": 0, "training.lr": 1e-4, "code.commit": "a"}
    right = {"training.warmup_steps": None, "code.commit": "b", "training.lr": 1e-4, "run.seed": 1}
    found = differences(left, right)
    assert found == [
        IngredientDifference("run.seed", 0, 1),
        IngredientDifference("training.warmup_steps", ABSENT, None),
        IngredientDifference("code.commit", "a", "b"),
    ]
    assert str(found[1]) == "training.warmup_steps: absent → None"
