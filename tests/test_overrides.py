"""Values of keys that hold text: literal on the command line, and unchanged on every way back to it."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import example, given, settings
from hypothesis import strategies as st
from making_config import refusal, values_of

from coconut_ds.files import shell_word
from coconut_ds.runs.manifest import RunManifest, now, read_manifest
from coconut_ds.settings import Config, EvalConfig, ProbeConfig
from coconut_ds.settings.compose import compose_config, compose_eval_config, compose_probe_config, parse_arguments
from coconut_ds.settings.overrides import quoted, read_text, text_keys, text_override
from coconut_ds.settings.schema import to_yaml

KEYS = (
    *("run.save_path", "run.load_model_path", "run.project", "run.wandb_entity", "run.resume_attempt_id"),
    *("data.train_path", "data.val_path", "data.test_path", "data.made_by", "data.cache_path"),
    *("model.model_id", "deepspeed.config"),
)
"""Keys that take any text."""
SPECIAL = "'\"\\=[]{}()<>~$, #!&|;*?`%@^0123456789.e+-_:nulé"
NAMED = (
    "my out=1 (2)",
    "~/out",
    "é",
    "it's",
    "1.10",
    "1e5",
    "2024.10",
    "0x1f",
    "true",
    "null",
    "${run.name}",
    "${",
    "",
)
NAMED += (
    "'x'",
    '"x"',
    "'a' and 'b'",
    "a\\'",
    "'\\'",
    "[a,b]",
    "{a: 1}",
    "+lr",
    "=",
    "a=b=c",
    "-",
    "--help",
    "# no",
    "\\",
)
TEXTS = st.one_of(
    st.sampled_from(NAMED),
    st.text(st.sampled_from(SPECIAL)),
    st.text(st.characters(codec="utf-8")).filter(str.isprintable),
)


def manifest(command: list[str]) -> RunManifest:
    state: dict[str, Any] = {"status": "running", "num_epochs": 1, "host": "h", "pid": 1, "world_size": 1}
    times = {"started": now(), "updated": now()}
    return RunManifest(name="n", signature="s", attempt="a", code={}, versions={}, command=command, **state, **times)


def there_and_back(texts: list[str], folder: Path) -> list[str]:
    """Texts from a pasted command line through configuration, YAML and manifest to a second command line."""
    pasted = shlex.join([text_override(key, text) for key, text in zip(KEYS, texts, strict=True)])
    arguments = parse_arguments(shlex.split(pasted), Config, "usage")
    made = compose_config(arguments.overrides)
    assert list(values_of(made, dict.fromkeys(KEYS)).values()) == texts
    assert Config.from_dict(yaml.safe_load(to_yaml(made))) == made
    manifest(["python", "train.py", *arguments.overrides]).write(folder / "run_manifest.yaml")
    stored = read_manifest(folder / "run_manifest.yaml")
    assert stored is not None
    again = shlex.split(shlex.join(stored.command))[2:]
    return list(values_of(compose_config(again), dict.fromkeys(KEYS)).values())


@settings(deadline=None, max_examples=4)
@given(texts=st.lists(TEXTS, min_size=len(KEYS), max_size=len(KEYS)))
@example(texts=list(NAMED[: len(KEYS)]))
@example(texts=list(NAMED[len(KEYS) : 2 * len(KEYS)]))
def test_any_text_survives_command_line_configuration_manifest_and_back(texts, tmp_path_factory) -> None:
    assert there_and_back(texts, tmp_path_factory.mktemp("run")) == texts


@settings(deadline=None, max_examples=500)
@given(text=TEXTS)
def test_a_text_is_written_literally_unless_that_would_be_ambiguous(text) -> None:
    override = text_override("key", text)
    assert read_text(override.removeprefix("key="), nullable=True) == text
    assert read_text(override.removeprefix("key="), nullable=False) == text
    quotes = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    assert override == f"key={text}" or quotes or text.lower() == "null"
    (pasted,) = shlex.split(f"key={shell_word(Path(text))}")
    assert Path(str(read_text(pasted.removeprefix("key="), nullable=True))) == Path(text)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS.filter(bool), quote=st.sampled_from(Quote))
def test_quotes_mean_what_they_mean_in_hydra(text, quote) -> None:
    assert read_text(QuotedString(text, quote).with_quotes(), nullable=True) == text
    assert OverridesParser.create().parse_rule(quoted(text), "primitive") == QuotedString(text, Quote.single)


def test_printed_paths_are_pasted_into_bash_unchanged() -> None:
    paths = [*map(Path, NAMED), Path("my out=1 (2)", "it's", "checkpoint_2")]
    words = " ".join(map(shell_word, paths))
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True)
    assert [Path(word) for word in done.stdout.decode().split("\0")[:-1]] == paths


def test_null_and_quotes_are_the_only_exceptions() -> None:
    made = compose_config(
        ["load_model_path=null", "tokenizer=NULL", "run.save_path=null", "data.test_path='null'", "project=' a '"]
    )
    assert (made.run.load_model_path, made.run.save_path, made.data.test_path) == (None, "null", "null")
    assert (made.run.project, made.model.tokenizer) == (" a ", None)
    assert compose_config(["run.name=1.10"]).run.name == "1.10"


@pytest.mark.parametrize("schema", [Config, EvalConfig, ProbeConfig])
def test_what_counts_as_text(schema) -> None:
    keys = text_keys(schema)
    assert all(isinstance(may_be_null, bool) for may_be_null in keys.values())
    assert keys["data.test_path"] is True
    assert ("run.name" in keys, "checkpoint" in keys) == (schema is Config, schema is not Config)
    assert not {"training.lr", "training.betas", "n_thoughts", "tokens", "model.model_config_overrides"} & set(keys)


def test_a_file_of_options_may_use_a_text_of_the_command_line(tmp_path: Path) -> None:
    own = tmp_path / "it's [mine], (2)" / "data"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("kind: file\ntrain_path: ${run.project}/t.json\nval_path: v\n", encoding="utf-8")
    made = compose_config(["data=mine", "run.project=${a} it's"], [str(own.parent)])
    assert made.data.train_path == "${a} it's/t.json"


def test_evaluation_and_probing_take_paths_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("it's, (1) = 2.json")
    file.touch()
    given = ["+checkpoint=my out=1 (2)/it's", "out=~/1.10"]
    for data in (str(file), f'"{file}"', quoted(str(file))):
        made = compose_eval_config([*given, f"data={data}", "method=cot", "n_thoughts=0,1"])
        assert (made.checkpoint, made.out, made.method) == ("my out=1 (2)/it's", "~/1.10", "cot")
        assert (made.data.test_path, made.data_name, made.n_thoughts) == (str(file), file.stem, (0, 1))
    probe = compose_probe_config("think", [*given, "question='a' = 'b'", "pause=${x}", "token=null", "tokens=a, [b"])
    assert (probe.checkpoint, probe.out, probe.pause) == ("my out=1 (2)/it's", "~/1.10", "${x}")
    assert (probe.question, probe.token, probe.tokens) == ("'a' = 'b'", "null", ("a", "[b"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr=1e-4,2e-4", ["lr=1e-4,2e-4: found several values", "expected one (number > 0)", "one command for each"]),
        ("lr=range(1,3)", ["expected one (number > 0)"]),
        ("betas=0.9,0.95", ["write a list in brackets, such as 'betas=[0.9,0.95]'"]),
        ("num_nodes=choice(1,2)", ["'num_nodes=[1,2]'"]),
        ("model.model_config_overrides.x=1,2", ["'model.model_config_overrides.x=[1,2]'"]),
        ("method=coconut,cot", ["found several options", "no_thoughts", "one command for each option"]),
    ],
)
def test_several_values_are_refused_without_advising_a_refused_option(override: str, words: list[str]) -> None:
    message = refusal([override])
    assert [word for word in words if word not in message] == []
    assert "multirun" not in message
