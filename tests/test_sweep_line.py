"""The command line of a sweep: the runs that it means, and their identity."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from coconut_ds.errors import ConfigError
from coconut_ds.results import Identity
from coconut_ds.settings.compose import compose_config
from coconut_ds.settings.overrides import quoted, read_text
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.settings.sweep_line import read_line, text_values
from coconut_ds.studies.harness import study_identity
from coconut_ds.studies.jobs import finish
from coconut_ds.studies.study import job_of, read_study, study_job

STUDIES = {name: read_study(name) for name in ("small_tasks", "objectives", "gsm8k_table1", "prosqa_table1")}
STUDIES["prontoqa_table1"] = read_study("prontoqa_table1")
CHOICES = [
    *((name, next(iter(study.tasks)), row) for name, (study, _) in STUDIES.items() for row in study.rows),
    *((name, task, next(iter(study.rows))) for name, (study, _) in STUDIES.items() for task in [*study.tasks][1:]),
]


def words(*argv: str) -> list[str]:
    """What Hydra gets, without what is set automatically."""
    return [word for word in read_line(argv).words if not word.startswith(("++sweep.varied=", "++sweep.config_dirs="))]


def test_keys_may_be_written_as_for_a_run_and_text_is_literal() -> None:
    assert words(
        "-m", "method=coconut,pause", "lr=1e-4,2e-4", "load_model_path=~/a b,'c,d'", "hydra/launcher=basic"
    ) == [
        *("method=coconut,pause", "++training.lr=1e-4,2e-4", "++run.load_model_path='~/a b','c,d'"),
        *("hydra/launcher=basic", "-m"),
    ]
    assert "++sweep.varied=[method,training.lr]" in read_line(["method=cot,pause", "lr=1,2", "run.seed=0,1"]).words


def test_a_study_gives_what_the_command_line_leaves_out() -> None:
    given_row = words("study=gsm8k_table1", "row=cot,coconut", "run.seed=7", "--cfg", "job")
    assert given_row == ["study=gsm8k_table1", "++run.seed=7", "--cfg", "job"], "Hydra composes one configuration"
    assert words("study=small_tasks", "row=cot", "seed=7") == [
        *("++sweep.task='modular_sum','permutation_product'", "study=small_tasks", "++sweep.row='cot'", "++run.seed=7"),
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lrr=1", "did you mean lr"),
        ("study=none", "no such option; expected one of graph_search, gsm8k_table1"),
        ("method=none", "no such option; expected one of coconut"),
        ("row=cot", "choose a study with study=NAME"),
        ("out=a,b", "found several values, expected one"),
        ("ranks=2", "set start=deepspeed or start=torchrun"),
        ("~data", "cannot be deleted"),
        ("lr=[1", "cannot be read"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_starts(word: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_line([word])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])), min_size=1, max_size=3))
def test_any_text_reaches_the_run_unchanged(texts: list[str]) -> None:
    """From the command line through Hydra's grammar, which splits and quotes again, to the command line of the run."""
    # Users need quotes only around texts that have some, or commas; null means no text.
    plain = [text and not set(text) & set(",'\"\\") and text.lower() != "null" for text in texts]
    typed = [text if is_plain else quoted(text) for text, is_plain in zip(texts, plain, strict=True)]
    word = f"run.load_model_path={','.join(text_values(','.join(typed), nullable=True))}"
    parsed = OverridesParser.create().parse_override(word)
    several = parsed.is_sweep_override()
    made = list(parsed.sweep_string_iterator()) if several else [parsed.get_value_element_as_str()]
    assert [read_text(value, nullable=True) for value in made] == texts


@pytest.mark.parametrize(("name", "task", "row"), CHOICES)
def test_every_run_of_every_study_is_a_configuration(name: str, task: str, row: str) -> None:
    study, sweep = STUDIES[name]
    job = study_job(study, sweep, task, row, 2)
    start = [] if job.after is None else ["load_model_path=CHECKPOINT"]
    config = compose_config([*job.overrides, *start])
    objective, _, method = row.rpartition("-")
    assert (config.objective.kind, config.method.kind, config.run.seed) == (objective or "likelihood", method, 2)
    assert (config.run.name, config.run.resume > 0) == (row, job.after is not None)


def test_runs_of_the_small_tasks_have_the_identity_of_earlier_versions(tmp_path: Path) -> None:
    study, sweep = STUDIES["small_tasks"]
    job = study_job(study, sweep.model_copy(update={"out": str(tmp_path)}), "modular_sum", "icot", 1)
    overrides = [
        *("run=demo", "model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo", "tokens_per_epoch=1"),
        *("data=modular_sum", "max_latent_stage=3", "num_epochs=30", "method=icot", "run.seed=1", "run.name=icot"),
    ]
    results = job.results()
    assert results.path == tmp_path / "modular_sum" / "icot" / "seed_1"
    assert results.identity.signature == study_identity(overrides=overrides).signature


def test_a_run_without_a_study_has_its_files_in_its_identity(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"question": "q", "steps": [], "answer": "a"}]))
    sweep = SweepConfig(out=str(tmp_path / "out"), varied=("method",))
    asked = [f"data.{name}_path='{tmp_path / name}.json'" for name in ("train", "val")]
    job = job_of(["method=cot", *asked, "run.seed=3"], sweep, read_line([]).study, 5)
    assert (job.row, job.seed, job.overrides[-2:]) == ((("method", "cot"),), 3, ("method=cot", "run.seed=3"))
    before = job.results().identity
    assert isinstance(before, Identity)
    (tmp_path / "val.json").write_text("[]")
    assert job.results().identity.signature != before.signature
    (tmp_path / "val.json").unlink()
    with pytest.raises(Exception, match=r"val\.json"):
        finish(job)
    (record,) = (tmp_path / "out" / "jobs").iterdir()
    assert json.loads(record.read_text())["status"] == "failed"


def test_a_key_of_the_study_changes_the_study_and_no_run() -> None:
    line = read_line(["study=small_tasks", "task=modular_sum", "row=cot", "study.seeds=[3,4]"])
    assert "++run.seed=3,4" in line.words
    job = job_of(["study=small_tasks", "++study.seeds=[3,4]", "run.seed=3"], line.sweep, line.study, 0)
    assert (job.seed, job.more, [word for word in job.overrides if "study" in word]) == (3, (), [])
    with pytest.raises(ConfigError, match="found several values"):
        read_line(["study=small_tasks", "study.title=a,b"])
