"""The ingredients of a run's signature: its settings, and the contents of data files, weights, tokenizer and code."""

from typing import Any

from coconut_ds.data.chat import digest_template
from coconut_ds.data.problem import file_digest
from coconut_ds.data.tokens import digest_tokenizer
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.identity import ingredients
from coconut_ds.settings import DataConfig
from coconut_ds.training.engine_file import read_engine_file
from coconut_ds.training.experiment import Experiment


def run_ingredients(experiment: Experiment) -> dict[str, Any]:
    """Everything that can change a number of the run, by dotted key. All ranks call it.

    Entries of the code are only in rank 0's table, because they depend on whether git is installed;
    ``runs.launch_facts`` compares the files of the code.
    """
    config, ranks = experiment.config, experiment.ranks
    tokenizer = experiment.backbone.tokenizer
    return ingredients(
        config,
        global_batch_size=experiment.geometry.global_batch_size,
        engine_file=read_engine_file(config),
        data=_contents(config.data),
        schedule=[_contents(phase.data) for phase in experiment.data_schedule.phases],
        # The engine gives all ranks the weights of rank 0.
        weights=ranks.from_first(experiment.weights),
        tokenizer=digest_tokenizer(tokenizer, experiment.backbone.eos_ids[1:]),
        chat_template=digest_template(tokenizer) if config.data.chat_template else None,
        code=code_identity() if ranks.is_first else {},
        batch=experiment.geometry.describe(),
        micro_batch=experiment.geometry.micro_batch_size,
    )


def _contents(data: DataConfig) -> dict[str, str]:
    """Hashes of the files that a data group trains with; empty for generated data."""
    if data.kind != "file":
        return {}
    assert data.train_path is not None
    assert data.val_path is not None
    return {"train": file_digest(data.train_path), "val": file_digest(data.val_path)}
