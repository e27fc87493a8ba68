"""What a prepared experiment is, for its signature: contents of data, weights and tokenizer beside the settings."""

from typing import Any

from coconut_ds.data.problem import file_digest
from coconut_ds.engine_file import read_engine_file
from coconut_ds.experiment import Experiment
from coconut_ds.model.digest import digest_state, tokenizer_content
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.identity import ingredients


def run_ingredients(experiment: Experiment) -> dict[str, Any]:
    """Everything that can change a number of the run. To be called before an engine cuts the parameters into shards."""
    config, backbone = experiment.config, experiment.backbone
    data, weights = {}, None
    if config.data.kind == "file":
        assert config.data.train_path is not None
        assert config.data.val_path is not None
        data = {"train": file_digest(config.data.train_path), "val": file_digest(config.data.val_path)}
    if config.run.load_model_path is not None or config.model.model_init == "pretrained":
        # Random weights follow from seed and configuration; others only from themselves.
        weights = digest_state(backbone.model.named_parameters())
    return ingredients(
        config,
        global_batch_size=experiment.geometry.global_batch_size,
        engine_file=read_engine_file(config),
        data=data,
        weights=weights,
        tokenizer=tokenizer_content(backbone.tokenizer),
        code=code_identity(),
        batch=experiment.geometry.describe(),
    )
