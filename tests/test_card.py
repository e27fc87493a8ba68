"""The model card: read back, or refused with the reason."""

import json

import pytest

from coconut_ds.errors import CheckpointError
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.card import ModelCard


def test_a_card_that_is_broken_or_of_another_method_is_refused(tmp_path):
    card = tmp_path / "coconut.json"
    assert ModelCard.read(tmp_path) is None
    card.write_text("{")
    with pytest.raises(CheckpointError, match=r"is not a valid coconut\.json"):
        ModelCard.read(tmp_path)
    values = json.loads('{"stage":0,"num_thoughts":0,"c_thought":1,"max_latent_stage":1,"marker_ids":{}}')
    card.write_text(json.dumps({**values, "method": "telepathy"}))
    with pytest.raises(CheckpointError, match="unknown method 'telepathy'"):
        ModelCard.read(tmp_path)


@pytest.mark.parametrize(
    ("parallel", "passes"),
    [
        (None, None),
        (Parallel("jacobi", 3), [0, 2, 3, 3]),
        (Parallel("looped", None, 2), [0, 2, 4, 4]),
        (Parallel("looped", 6, 2), [0, 7, 7, 7]),
    ],
)
def test_a_card_says_how_thoughts_are_computed(tmp_path, parallel, passes):
    """Only looped thoughts need a key that earlier versions did not write."""
    card = ModelCard.of(METHODS["coconut"], 3, CurriculumSpec(2, 3), "text", {}, parallel=parallel)
    (tmp_path / "coconut.json").write_text(json.dumps(card.as_dict()))
    read = ModelCard.read(tmp_path)
    assert read == card
    assert read.parallel == parallel
    assert passes is None or [read.parallel.num_passes(count) for count in (0, 2, 5, 6)] == passes
    assert ("looped" in card.as_dict()) == (parallel is not None and parallel.kind == "looped")
