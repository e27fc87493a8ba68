"""The model card: read back, or refused with the reason."""

import json

import pytest

from coconut_ds.errors import CheckpointError
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
