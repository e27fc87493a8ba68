"""``run=graph_search`` and its study: every row is a valid run, and its short form learns to search."""

from pathlib import Path

import pytest
import torch
from making_training import train
from torch_engine import run_folder

from coconut_ds.evaluation.session import evaluate
from coconut_ds.settings.compose import compose_config, compose_eval_config
from coconut_ds.studies.study import read_study, study_job

SMALL = ("data.num_nodes=[8,8]", "data.num_edges=[6,8]", "data.num_hops=[2,2]", "num_symbols=10", "split_by=problems")
SHORT = (
    *(
        "data=prosqa_arrows",
        "method=coconut_no_curriculum",
        "objective=supervised_thoughts",
        "training=graph_search",
        *SMALL,
        "size={train: 1600, valid: 100, test: 500}",
    ),
    *("max_latent_stage=2", "num_epochs=48", "stop_at=0.97", "lr=3e-3", "lr_schedule=constant", "save_every=100"),
    *("c_thought=1", "global_batch_size=64", "batch_size_training=64", "batch_size_eval=100", "reset_optimizer=never"),
    "model.model_config_overrides={n_layer: 2, n_head: 4, n_embd: 64, n_positions: 32, initializer_range: 0.1, "
    "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0, activation_function: gelu_pytorch_tanh}",
)
"""Two hops in graphs of eight nodes with ten names: 400 to 600 updates, about 20 s on one core."""


@pytest.mark.parametrize("task", ["prosqa", "nodes_12"])
def test_every_row_of_the_study_is_a_run_of_the_same_length(task: str) -> None:
    study, sweep = read_study("graph_search")
    runs = {row: compose_config(study_job(study, sweep, task, row, 0).overrides) for row in study.rows}
    main = runs["coconut-frontier"]
    assert all(run.training.num_epochs == main.training.num_epochs for run in runs.values())
    assert all(
        run.data.model_dump(exclude={"schedule"}) == main.data.model_dump(exclude={"schedule"}) for run in runs.values()
    )
    assert {row for row, run in runs.items() if run.objective.kind == "likelihood"} == {
        row for row in study.rows if "-" not in row
    }


@pytest.mark.slow
def test_the_short_form_learns_to_search(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = run_folder(tmp_path)
    train(folder, *SHORT)
    (checkpoint, *_) = folder.checkpoints()
    words = [f"checkpoint={checkpoint}", "data=prosqa_arrows", *SMALL, "size.test=500", "batch_size=500"]
    (evaluation,) = evaluate(compose_eval_config([*words, f"out={tmp_path / 'scores'}"]))
    assert len(evaluation.predictions) == 500
    assert evaluation.accuracy >= 0.95
