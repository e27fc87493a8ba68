"""Tensors that DeepSpeed does not move to the GPU by itself."""

import torch
from tiny_models import VOCABULARY, make_model

from coconut_ds.model.marker_rows import MarkerEmbedding, MarkerHead, train_marker_rows
from coconut_ds.training.engine import _move_buffers


def test_marker_ids_are_where_the_weights_are():
    """Under ZeRO-3 the weights are on the GPU when the markers' rows are added, and nothing is moved afterwards."""
    model = make_model("llama").to("meta")
    train_marker_rows(model, (VOCABULARY - 2, VOCABULARY - 1))
    for kind, part in ((MarkerEmbedding, model.get_input_embeddings()), (MarkerHead, model.get_output_embeddings())):
        assert isinstance(part, kind)
        assert (part.ids.device.type, part.difference.device.type) == ("meta", "meta")


def test_buffers_are_moved_and_stay_out_of_the_state_dict():
    model = make_model("llama")
    stored = model.state_dict().keys()
    _move_buffers(model, torch.device("meta"))
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.state_dict().keys() == stored
