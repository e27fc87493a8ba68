"""The seam between training and objectives: the registry, and the parts of the loss in the record."""

from typing import get_args

import yaml
from making_training import record, train
from torch_engine import run_folder

from coconut_ds.files import project_folder
from coconut_ds.objectives import OBJECTIVES
from coconut_ds.settings import ObjectiveConfig


def test_every_objective_has_its_name_and_an_option() -> None:
    options = [yaml.safe_load(path.read_text()) for path in (project_folder("config") / "objective").glob("*.yaml")]
    assert set(get_args(ObjectiveConfig.model_fields["kind"].annotation)) == set(OBJECTIVES)
    # An option that also sets keys of other groups names its own.
    assert {option.get("objective", option)["kind"] for option in options} == set(OBJECTIVES)


def test_the_likelihood_has_one_part_and_no_line_of_its_own(tmp_path) -> None:
    folder = run_folder(tmp_path)
    train(folder, "num_epochs=1")
    assert not [key for line in record(folder) for key in line if key.startswith("train/loss_")]
