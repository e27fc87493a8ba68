"""The memory of models: the limit of a container, what is counted for a model, and cards that would need too much."""

import shutil

import pytest
from serving import save_checkpoint

from coconut_ds.errors import CheckpointError
from coconut_ds.model.card import MAX_LATENTS, ModelCard
from serve.checkpoints.offered import find_checkpoints
from serve.limits import EngineSettings
from serve.models.memory import needed_bytes, usable_bytes
from serve.models.pool import Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("memory") / "tiny")


CGROUPS = {
    # Within a container of version 2 that sees only its own group: the limit of an outer group inside counts, too.
    "2": (
        "0::/a/b\n",
        "30 1 0:1 / CGROUP rw - cgroup2 cgroup rw\n",
        {"a/memory.max": "3000000", "a/b/memory.max": "max"},
    ),
    "2, namespace": ("0::/\n", "30 1 0:1 / CGROUP rw - cgroup2 cgroup rw\n", {"memory.max": "3000000"}),
    "1": (
        "4:memory:/docker/x\n0::/\n",
        "30 1 0:1 /docker/x CGROUP rw - cgroup cgroup rw,memory\n31 1 0:1 / /nowhere rw - cgroup cgroup rw,cpu\n",
        {"memory.limit_in_bytes": "3000000"},
    ),
    "1, nested": (
        "4:cpu,memory:/a/b\n",
        "30 1 0:1 / CGROUP rw shared:1 - cgroup cgroup rw,cpu,memory\n",
        {"a/memory.limit_in_bytes": "3000000", "a/b/memory.limit_in_bytes": "9223372036854771712"},
    ),
    "none": ("0::/a\n", "30 1 0:1 / CGROUP rw - cgroup2 cgroup rw\n", {}),
}


@pytest.mark.parametrize("kind", CGROUPS)
def test_the_memory_limit_of_a_container_counts(tmp_path, kind):
    own, mounts, files = CGROUPS[kind]
    groups = tmp_path / "cgroups"
    for name, text in {**files, "cgroup.procs": ""}.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{text}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(own)
    (tmp_path / "self" / "mountinfo").write_text(mounts.replace("CGROUP", str(groups)))
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemFree: 1 kB\n")
    assert usable_bytes(tmp_path) == (8_192_000 if kind == "none" else 3_000_000)


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
