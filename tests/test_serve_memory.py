"""The memory of models: the limit of a container, what is counted for a model, and cards that would need too much."""

import json
import shutil

import pytest
from serving import save_checkpoint

from coconut_ds.errors import CheckpointError
from coconut_ds.model.card import MAX_LATENTS, ModelCard
from serve.checkpoints.offered import find_checkpoints
from serve.limits import EngineSettings
from serve.models.memory import needed_bytes
from serve.models.pool import Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("memory") / "tiny")


def test_a_card_with_numbers_out_of_range_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "card")
    text = (folder / "coconut.json").read_text()
    for name, found in (("num_thoughts", 60_000_000), ("num_thoughts", -1), ("stage", 10**12), ("iterations", 10**6)):
        values = text.replace('"iterations": null', f'"iterations": {found}')
        if name != "iterations":
            values = text.replace(f'"{name}": {2 if name == "num_thoughts" else 1}', f'"{name}": {found}')
        assert str(found) in values
        (folder / "coconut.json").write_text(values)
        with pytest.raises(CheckpointError, match=f"{name} is {found}; expected"):
            ModelCard.read(folder)
    (folder / "coconut.json").write_text(text.replace('"num_thoughts": 2', f'"num_thoughts": {MAX_LATENTS}'))
    assert ModelCard.read(folder).num_thoughts == MAX_LATENTS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_takes_the_memory_that_is_counted_for_it(checkpoint, dtype):
    settings = EngineSettings(slots=3, max_positions=100, dtype=dtype)
    models = Models(find_checkpoints([str(checkpoint)]), settings, 8, 10**8)
    with models.holding("tiny") as thread:
        model = thread.reasoner.backbone.model
        weights = {one.data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
        cache = thread.run(lambda _: thread._jobs._engine.cache.num_bytes).result(60)
        assert models.used_bytes == needed_bytes(checkpoint, settings) == sum(weights.values()) + cache
    models.close()


def test_a_window_limits_what_is_counted_as_it_limits_the_slots(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "window")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 40}))
    shorter = needed_bytes(folder, EngineSettings(slots=3, max_positions=40))
    assert needed_bytes(folder, EngineSettings(slots=3, max_positions=100)) == shorter
    assert shorter < needed_bytes(checkpoint, EngineSettings(slots=3, max_positions=100))
