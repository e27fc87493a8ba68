"""The memory of models: the limit of a container, what is counted for a model, and cards that would need too much."""

import json
import shutil
import struct

import pytest
from serving import copy_checkpoint, save_checkpoint

from coconut_ds.errors import CheckpointError
from coconut_ds.model.card import MAX_LATENTS, ModelCard
from serve.checkpoints.offered import find_checkpoints
from serve.errors import QueueFullError, UnavailableError
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


def test_the_least_recently_used_model_leaves_and_a_held_one_never(checkpoint, tmp_path):
    folders = {name: copy_checkpoint(checkpoint, tmp_path / name) for name in "abc"}
    settings = EngineSettings(slots=2, max_positions=64)
    one = needed_bytes(folders["a"], settings)
    models = Models(find_checkpoints(map(str, folders.values())), settings, 8, 2 * one)
    for name in "abab":
        models.release(models.hold(name))
    assert list(models.loaded) == ["a", "b"]
    with models.holding("a"):
        with models.holding("c"):
            assert list(models.loaded) == ["a", "c"]
            with pytest.raises(QueueFullError) as full:
                models.hold("b")
            assert full.value.retry_after_s
        models.hold("b")
        assert list(models.loaded) == ["a", "b"]
    models.close()
    with pytest.raises(UnavailableError):
        Models(models.checkpoints, settings, 8, one - 1).hold("a")


def test_the_memory_that_a_model_needs_is_told_by_its_headers(checkpoint, tmp_path):
    settings = EngineSettings(slots=3, max_positions=100, spare_slots=0)
    models = Models(find_checkpoints([str(checkpoint)]), settings, 8, 10**9)
    with models.holding("tiny") as thread:
        thread.run(lambda reasoner: reasoner.generate("a", max_new_tokens=1)).result()
        weights = sum(p.numel() * 4 for p in thread.reasoner.backbone.model.parameters())
        cache = 2 * 2 * 3 * 100 * 32 * 4
        assert needed_bytes(checkpoint, settings) == weights + cache
    models.close()
    broken = copy_checkpoint(checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(struct.pack("<Q", 10**12))
    with pytest.raises(CheckpointError, match="not a safetensors"):
        needed_bytes(broken, settings)
