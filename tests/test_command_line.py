"""``--help`` fits on one screen, ``--help=GROUP`` and ``--help-all`` say the rest; ``--cfg job`` works as in Hydra."""

import gc
import subprocess
import sys

import pytest
import yaml
from imports import ROOT
from pydantic import BaseModel

from coconut_ds import __version__, evaluate, plan, probe, push, sweep, train
from coconut_ds.cli.late_imports import late_imports
from coconut_ds.data import __main__ as data
from coconut_ds.errors import ConfigError
from coconut_ds.importing import cli as importing
from coconut_ds.methods import METHODS
from coconut_ds.runs import cli as runs
from coconut_ds.settings import Config, EvalConfig, ProbeConfig
from coconut_ds.settings.compose import compose_config, option_names, parse_arguments
from coconut_ds.settings.data import SOURCES
from coconut_ds.settings.help import PROGRAMS, expected_values
from coconut_ds.settings.schema import leaf_field, leaf_keys, subgroups
from serve import cli as serve

USAGES: list[tuple[type[BaseModel], str]] = [
    (Config, train.USAGE),
    (Config, plan.USAGE),
    (EvalConfig, evaluate.USAGE),
    (ProbeConfig, probe.USAGE),
]


METHOD_KEYS = [key for key in leaf_keys(Config) if key.startswith("method.")]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]):
    def shown(arguments: list[str], schema: type[BaseModel], usage: str = "usage") -> str:
        with pytest.raises(SystemExit, match="0"):
            parse_arguments(arguments, schema, usage)
        return capsys.readouterr().out

    return shown


@pytest.mark.parametrize(("schema", "usage"), USAGES)
def test_help_is_one_screen_with_groups_options_and_the_most_used_keys(schema, usage, shown) -> None:
    text = shown(["--help"], schema, usage)
    lines = text.splitlines()
    assert len(lines) <= (45 if schema is Config and usage == plan.USAGE else 40)
    assert max(map(len, lines)) <= 100
    assert usage.split()[0] in lines[0]
    for group in subgroups(schema):
        assert f"  {group}: " in text
        # Options that do not fit are in the group's own help.
        where = text if f"(all: --help={group})" not in text else shown([f"--help={group}"], schema, usage)
        assert [name for name in option_names()[group] if name not in where] == []
    common = PROGRAMS[schema].common
    assert [key for key in common if not any(line.startswith(f"  {key}") for line in lines)] == []
    assert all(word in text for word in ("--help=GROUP", "--help-all", "--cfg [job]", "--config-dir DIR"))
    assert shown(["-h"], schema, usage) == text


@pytest.mark.parametrize("schema", [Config, EvalConfig, ProbeConfig])
def test_the_groups_help_together_shows_every_key_with_its_meaning(schema, shown) -> None:
    names = [*subgroups(schema), *([PROGRAMS[schema].ungrouped] if PROGRAMS[schema].ungrouped else [])]
    texts = [shown([f"--help={name}"], schema) for name in names]
    flat = [" ".join(text.split()) for text in texts]
    for key in leaf_keys(schema):
        assert sum(f" {key}=" in text or f" {key} (" in text for text in flat) == 1
        meaning = " ".join((leaf_field(schema, key).description or "").split())
        assert any(meaning in text for text in flat)
    assert all(len(line) <= 100 for text in texts for line in text.splitlines())


def test_a_groups_help_gives_default_and_allowed_values(shown) -> None:
    training = shown(["--help=training"], Config)
    assert "  training.lr=0.0001 (number > 0)\n" in training
    assert "  training.advance=epochs (epochs, accuracy)\n" in training
    assert "  training.betas=[0.9,0.999] ([number ≥ 0 and < 1, number ≥ 0 and < 1])\n" in training
    assert f"options (training=option): {option_names()['training'][0]}" in training
    data = shown(["--help=data"], Config)
    assert f"  data.kind ({', '.join(sorted(SOURCES))}; required)\n" in data
    assert "  data.size.train=6400 (integer > 0)\n" in data
    method = " ".join(shown(["--help=method"], Config).split())
    assert f"method.kind ({', '.join(sorted(METHODS))}; required)" in method


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int | None, "integer, or null"),
        (tuple[int, ...], "list of integer"),
        (tuple[int, float], "[integer, number]"),
        (dict[str, int], "mapping"),
        (bool, "true, false"),
    ],
)
def test_types_are_put_in_words(kind, words) -> None:
    assert expected_values(kind) == words


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (Config, "run, data, method, objective, model, training, deepspeed"),
        (EvalConfig, "evaluate, data, model"),
        (ProbeConfig, "probe, data, model"),
    ],
)
def test_help_of_an_unknown_group_names_the_groups(schema, names) -> None:
    with pytest.raises(ConfigError, match=f"--help=optim: no such group; expected one of {names}"):
        parse_arguments(["--help=optim"], schema, "usage")


def test_help_is_an_option_also_between_overrides(shown) -> None:
    assert shown(["lr=1", "--help", "seed=2"], Config) == shown(["--help"], Config)


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--cfg"], []),
        (["--cfg", "job"], []),
        (["--cfg=job"], []),
        (["--cfg", "job", "lr=1"], ["lr=1"]),
        (["--cfg", "lr=1"], ["lr=1"]),
        (["--cfg", "+lr=1"], ["+lr=1"]),
        (["--cfg", "~lr"], ["~lr"]),
        (["lr=1", "--cfg", "--local_rank=0"], ["lr=1"]),
        (["--cfg", "--config-dir", "job"], []),
    ],
)
def test_cfg_takes_hydras_word_job_or_none(arguments, overrides) -> None:
    parsed = parse_arguments(arguments, Config, "usage")
    assert (parsed.cfg, parsed.overrides) == (True, overrides)


@pytest.mark.parametrize("arguments", [["--cfg", "hydra"], ["--cfg=all"], ["lr=1", "--cfg", "job", "hydra"]])
def test_cfg_of_anything_else_is_refused_with_what_is_accepted(arguments) -> None:
    expected = "hydra: cannot be read" if "job" in arguments else "--cfg (hydra|all): expected --cfg or --cfg job"
    with pytest.raises(ConfigError, match=expected):
        compose_config(parse_arguments(arguments, Config, "usage").overrides)


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        (train, ["lr=1e-5"], ("training", "lr", 1e-5)),
        (plan, ["lr=1e-5", "gpus=2"], ("training", "lr", 1e-5)),
        (evaluate, ["checkpoint=C", "data=gsm_eval"], ("data", "max_new_tokens", 64)),
        (probe, ["graph", "checkpoint=C", "data=prosqa_eval"], ("data", "kind", "file")),
    ],
)
def test_every_program_prints_its_configuration(program, given, expected, capsys) -> None:
    group, key, value = expected
    assert program.main([*given, "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[group][key] == value


@pytest.mark.parametrize("option", ["--cfg=hydra", "--help=optim", "data.kind=web"])
def test_a_wrong_command_line_ends_with_code_2_before_torch_is_loaded(option) -> None:
    script = f"import sys; from coconut_ds.train import main; print(main([{option!r}]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: ")


def test_garbage_is_not_looked_for_while_libraries_are_imported(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", "imported")
    with late_imports():
        assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "torch")
    before = gc.get_freeze_count()
    with late_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


@pytest.mark.parametrize("program", [train, plan, evaluate, probe, runs, data, serve, importing, push, sweep])
def test_every_program_says_its_versions(program, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        program.main(["--version"])
    assert capsys.readouterr().out.startswith(f"coconut-ds {__version__}, Python 3.")


def test_an_unknown_log_level_or_shell_is_refused() -> None:
    with pytest.raises(ConfigError, match="--log-level: found 'loud', expected debug, info, warning, error"):
        parse_arguments(["--log-level=loud"], Config, "usage")
    with pytest.raises(ConfigError, match="--completion: found '', expected bash, zsh"):
        parse_arguments(["--completion"], Config, "usage")


def test_messages_of_libraries_are_shown_on_request() -> None:
    script = (
        "import sys, logging, warnings\n"
        "from coconut_ds.cli.common import take_common; from coconut_ds.cli.logs import quiet\n"
        "assert take_common(sys.argv[1:], 'p', list) == ['lr=1']\n"
        "library = logging.getLogger('DeepSpeed')\n"
        "library.addHandler(logging.StreamHandler(sys.stdout)); quiet(library)\n"
        "library.info('an info'); library.warning('a warning'); library.error('an error')\n"
        "logging.getLogger('coconut_ds').warning('our own')\n"
        "warnings.warn_explicit('discouraged', UserWarning, 'f.py', 1, module='transformers.models')\n"
        "warnings.warn_explicit('mine', UserWarning, 'f.py', 1, module='reward')\n"
    )

    def shown(*options: str) -> tuple[str, str]:
        command = [sys.executable, "-c", script, *options, "lr=1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        return done.stdout, done.stderr

    out, err = shown()
    assert out == "an error\n"
    assert ["our own" in err, "mine" in err, "discouraged" in err] == [True, True, False]
    assert shown("-v")[0] == "an info\na warning\nan error\n"
    assert "discouraged" in shown("-v")[1]
    assert shown("--verbose", "--log-level", "warning")[0] == "a warning\nan error\n"
    assert shown("--log-level=error")[1].count("our own") == 0
