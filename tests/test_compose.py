"""Command lines, presets and overrides become one configuration; invalid overrides are refused with advice."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from making_config import composed, config, refusal, values_of

from coconut_ds.errors import ConfigError
from coconut_ds.settings import Config
from coconut_ds.settings.compose import (
    compose_config,
    option_names,
    parse_arguments,
    print_config,
)

OPTIONS = option_names()

# Values that the options leave to the user.
FILES = ["load_model_path=P", "data.train_path=T", "data.val_path=V"]


# Composing takes a tenth of a second, so row i tests the i-th option of every group at once.
@pytest.mark.parametrize("row", range(max(map(len, OPTIONS.values()))))
def test_every_option_of_every_group_composes(row: int) -> None:
    # Not every objective, nor every format, can be combined with every method. Recipes that set keys of one need it.
    chosen = [f"{group}={names[row % len(names)]}" for group, names in OPTIONS.items() if group != "objective"]
    recipe = next(word.partition("=")[2] for word in chosen if word.startswith("training="))
    if objective := next((name for name in ("sim_cot", "codi", "lotus") if name in recipe), None):
        chosen.append(f"objective={objective}")
    if "run=graph_search" in chosen:
        # Its objective needs thoughts.
        chosen = ["method=coconut" if word.startswith("method=") else word for word in chosen]
    symbolic = {"data=prosqa_symbolic", "data=prosqa_balanced", "data=prosqa_arrows"} & set(chosen)
    if objective or symbolic:
        method = "method=coconut_no_curriculum" if objective and symbolic else "method=coconut"
        chosen = [method if word.startswith("method=") else word for word in chosen]
    made = composed(*chosen, *FILES)
    assert f"run={made.run.name}" in chosen
    assert f"method={made.method.kind}" in chosen
    assert f"deepspeed={made.deepspeed.config}" in chosen


@pytest.mark.parametrize("name", OPTIONS["objective"])
def test_every_objective_composes_with_a_method_that_has_thoughts(name: str) -> None:
    assert composed(f"objective={name}", "method=coconut_no_curriculum").objective.kind == name


def test_groups_are_those_of_the_configuration_and_methods_those_of_the_registry() -> None:
    assert set(OPTIONS) == set(Config.model_fields)
    for method in OPTIONS["method"]:
        assert config({"method.kind": method}).method.kind == method


def test_prontoqa_trains_with_the_values_of_prosqa() -> None:
    """Both names keep working; one file inherits from the other."""
    one, other = (compose_config([f"training={name}_coconut"]) for name in ("prosqa", "prontoqa"))
    assert one == other


LOGIC = {
    "training.c_thought": 1,
    "training.max_latent_stage": 6,
    "training.epochs_per_stage": 5,
    "training.num_epochs": 50,
    "run.resume": 0,
    "data.max_new_tokens": 128,
}

GSM = {
    "training.c_thought": 2,
    "training.max_latent_stage": 3,
    "training.epochs_per_stage": 3,
    "training.num_epochs": 25,
    "data.max_new_tokens": 64,
}

PAPER = {
    "training.lr": 1e-4,
    "training.weight_decay": 0.01,
    "training.global_batch_size": 128,
    "training.reset_optimizer": "stage",
}

PRETRAINED = {"model.model_id": "openai-community/gpt2", "model.model_init": "pretrained"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {**LOGIC, **PAPER, "method.kind": "coconut", "data.train_path": "data/prosqa_train.json"}),
        (
            "run=prosqa_coconut_eval data=prontoqa_file training=prosqa_eval load_model_path=P",
            {"run.only_eval": True, "run.load_model_path": "P", "data.test_path": "data/prontoqa_test.json"},
        ),
        ("run=synthetic_coconut data=synthetic", {**LOGIC, **PAPER, "data.kind": "synthetic"}),
        (
            "run=prosqa_cot method=cot training=prosqa_cot",
            {**PAPER, "method.kind": "cot", "training.c_thought": 0, "training.num_epochs": 50},
        ),
        (
            "run=prontoqa_coconut data=prontoqa_file model=gpt2_pretrained training=prontoqa_coconut",
            {**LOGIC, **PAPER, **PRETRAINED, "data.train_path": "data/prontoqa_train.json"},
        ),
        (
            "run=prontoqa_coconut_eval data=prontoqa_eval model=gpt2_pretrained training=prontoqa_coconut "
            "load_model_path=P",
            {"run.only_eval": True, "run.load_model_path": "P", "data.test_path": "data/prontoqa_test.json"},
        ),
        (
            "run=gsm_coconut data=gsm_file model=gpt2_pretrained training=gsm_coconut load_model_path=P",
            {**GSM, **PAPER, **PRETRAINED, "run.resume": 3, "run.load_model_path": "P"},
        ),
        (
            "run=gsm_coconut_eval data=gsm_eval model=gpt2_pretrained training=gsm_coconut load_model_path=P",
            {**GSM, "run.only_eval": True, "data.test_path": "data/gsm_test.json", "data.train_path": None},
        ),
        (
            "run=gsm_cot data=gsm_file method=cot model=gpt2_pretrained training=gsm_cot",
            {**PAPER, **PRETRAINED, "training.num_epochs": 25, "data.max_new_tokens": 64, "run.resume": 0},
        ),
        (
            "run=gsm_coconut data=gsm_file model=llama3_8b training=gsm_coconut_large deepspeed=zero3 "
            "load_model_path=P",
            {
                **GSM,
                "run.bf16": True,
                "training.lr": 1e-5,
                "deepspeed.config": "zero3",
                "training.global_batch_size": 128,
            },
        ),
        (
            "run=prosqa_coconut run.debug=true training.num_epochs=1 training.gradient_accumulation_steps=1",
            {"run.debug": True, "training.num_epochs": 1, "training.global_batch_size": None},
        ),
    ],
)
def test_the_published_command_lines_mean_the_published_experiments(line: str, expected: dict[str, Any]) -> None:
    assert values_of(composed(*line.split()), expected) == expected


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("load_model_path=P", "run.load_model_path", "P"),
        ("uniform_prob=0.1", "training.uniform_prob", 0.1),
        ("save_only_improve=true", "run.save_only_improve", True),
        ("size.train=7", "data.size.train", 7),
        ("data.size.test=8", "data.size.test", 8),
        ("+lr=1e-5", "training.lr", 1e-5),
        ("++training.lr=1e-5", "training.lr", 1e-5),
        ("config=zero2", "deepspeed.config", "zero2"),
        ("num_nodes=[3,9]", "data.num_nodes", (3, 9)),
        ("reset_optimizer=true", "training.reset_optimizer", "epoch"),
        ("reset_optimizer=false", "training.reset_optimizer", "never"),
        ("model.tokenizer=null", "model.tokenizer", None),
        ("load_model_path='/a b/c=d'", "run.load_model_path", "/a b/c=d"),
    ],
)
def test_a_key_is_set_with_or_without_its_group(override: str, key: str, value: Any) -> None:
    assert values_of(compose_config([override]), {key: None}) == {key: value}


def test_keys_below_a_mapping_are_added_to_it() -> None:
    overrides = compose_config(["model.model_config_overrides.n_layer=3"]).model.model_config_overrides
    assert (overrides["n_layer"], overrides["n_embd"]) == (3, 512)


def test_an_empty_mapping_drops_the_keys_of_the_option_and_those_before_it() -> None:
    llama, own = ["model=gpt2_scratch_tiny", "model_id=llama"], "model.model_config_overrides={hidden_size: 64}"
    dropped = [*llama, "model_config_overrides={}", own, "model.model_config_overrides.num_hidden_layers=1"]
    assert compose_config(dropped).model.model_config_overrides == {"hidden_size": 64, "num_hidden_layers": 1}
    assert compose_config([*llama, own, "model_config_overrides={}"]).model.model_config_overrides == {}
    # The option itself is as before.
    assert {"hidden_size", "n_embd"} <= set(compose_config([*llama, own]).model.model_config_overrides)


@pytest.mark.parametrize(
    ("given", "accumulation", "global_batch"),
    [
        (["gradient_accumulation_steps=2"], 2, None),
        (["++training.gradient_accumulation_steps=2"], 2, None),
        (["gradient_accumulation_steps=2", "training.global_batch_size=64"], 2, 64),
        (["global_batch_size=64"], None, 64),
        (["gradient_accumulation_steps=null"], None, 128),
    ],
)
def test_accumulation_on_the_command_line_replaces_the_global_batch_of_a_preset(
    given: list[str], accumulation: int | None, global_batch: int | None
) -> None:
    training = compose_config(given).training
    assert (training.gradient_accumulation_steps, training.global_batch_size) == (accumulation, global_batch)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("kind=file", ["kind=file", "several groups", "data.kind, method.kind"]),
        ("learning_rat=2", ["learning_rat=2", "no group has this key"]),
        ("training.num_epoch=2", ["no group has this key", "did you mean", "training.num_epochs"]),
        ("load_model_pth=P", ["no group has this key", "did you mean", "load_model_path"]),
        ("beta=1", ["beta=1", "did you mean grpo.beta"]),
        ("gama=1", ["gama=1", "did you mean codi.gamma"]),
        ("xyzzy=1", ["xyzzy=1", "no group has this key", "--help"]),
        ("hydra.run.dir=x", ["hydra.run.dir=x", "no group has this key"]),
        ("method=cott", ["method=cott: no such option", ", ".join(OPTIONS["method"])]),
        ("data=gsm", ["data=gsm: no such option", "gsm_eval, gsm_file"]),
        ("~training.lr", ["~training.lr", "cannot be deleted", "set a value"]),
        ("~data", ["~data", "cannot be deleted"]),
        ("lr", ["lr: cannot be read", "group=option or key=value"]),
        ("lr=1,2", ["lr=1,2", "found several values", "one command for each value"]),
    ],
)
def test_an_invalid_override_is_refused_with_valid_ones(override: str, words: list[str]) -> None:
    message = refusal([override])
    assert [word for word in words if word not in message] == []


def test_the_launchers_rank_is_dropped_and_other_options_are_kept_apart() -> None:
    for rank in (["--local_rank=1"], ["--local_rank", "1"], ["--local-rank=1"]):
        arguments = parse_arguments([*rank, "run=gsm_cot", "--cfg", "lr=1"], Config, "usage")
        assert (arguments.overrides, arguments.cfg, arguments.config_dir) == (["run=gsm_cot", "lr=1"], True, [])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--multirun", "--multirun: every launch is one run.*start one command per run"),
        ("-m", "--multirun: every launch is one run"),
        ("--bogus", "unknown option --bogus; expected .*--config-dir"),
    ],
)
def test_other_options_are_refused(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_arguments(["lr=1", option], Config, "usage")


def test_a_folder_of_own_options_works_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "my options" / "training"
    own.mkdir(parents=True)
    (own / "short.yaml").write_text("num_epochs: 2\nlr: 3.0e-4\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    arguments = parse_arguments(["training=short", "--config-dir", "my options"], Config, "usage")
    made = compose_config(arguments.overrides, arguments.config_dir)
    assert (made.training.num_epochs, made.training.lr, made.run.name) == (2, 3e-4, "prosqa_coconut")
    with pytest.raises(ConfigError, match=r"training=shrt: no such option; expected one of .*gsm_coconut.*short"):
        compose_config(["training=shrt"], arguments.config_dir)


def test_options_are_read_again_once_their_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "training" / "own.yaml"
    path.parent.mkdir()
    for num_epochs in (2, 30):
        path.write_text(f"num_epochs: {num_epochs}\nlr: 3.0e-4\n", encoding="utf-8")
        for rate in (3e-4, 1e-5):
            # A key that is set does not stay set.
            made = compose_config(["training=own", *([f"lr={rate}"] if rate == 1e-5 else [])], [str(tmp_path)])
            assert (made.training.num_epochs, made.training.lr) == (num_epochs, rate)
    assert compose_config(["training=own"], [str(tmp_path)]).training.lr == 3e-4


def test_a_folder_of_own_options_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/none"):
        compose_config([], [f"{tmp_path}/none"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.num_epochs=" + "9" * 5000, "training.num_epochs: cannot be read: .*digits"),
        ("num_nodes=[1," + "9" * 5000 + "]", "num_nodes: cannot be read: .*digits"),
        ("lr=1e999", "training.lr: found inf, .*finite number"),
        ("lr=nan", "training.lr: found nan, .*finite number"),
    ],
)
def test_numbers_that_are_not_numbers_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose_config([override])


def test_what_is_printed_reads_back_as_the_same_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    made = compose_config(["stage_switches=[1,2]", "lr=1e-5"])
    print_config(made)
    assert Config.from_dict(yaml.safe_load(capsys.readouterr().out)) == made
