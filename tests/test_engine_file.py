"""DeepSpeed's files: which are refused, and what the engine's configuration makes of them."""

import json

import pytest
from zero_worker import with_engine

from coconut_ds.errors import ConfigError
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine_file import engine_values, holds_weights, read_engine_file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"train_batch_size": 8}', "sets train_batch_size, which training"),
        ('{"bf16": {"enabled": true}, "optimizer": {}}', "sets optimizer, bf16"),
        ("{", "broken JSON at line 1"),
        ("[]", "found list, expected an object"),
        ('{"zero_optimization": 2}', "zero_optimization: found 2, expected an object"),
        ('{"gradient_allreduce_op": "sum"}', "sets gradient_allreduce_op"),
        ('{"zero_optimization": {"stage": "auto"}}', "stage: found 'auto', expected 0, 1, 2 or 3"),
    ],
)
def test_an_engine_file_that_cannot_be_is_refused(tmp_path, content, words):
    path = tmp_path / "own.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_engine_file(compose_config([f"deepspeed.config={path}"]))


def test_weights_are_held_under_zero_3_unless_the_file_cannot_do_it(tmp_path):
    """Not on NVMe, and not with the quantized or duplicated weights of ZeRO++."""
    base = compose_config(["deepspeed=zero3"])
    path = tmp_path / "own.json"
    for section, holds in (
        ({"stage": 3}, True),
        ({"stage": 3, "offload_param": {"device": "cpu"}, "zero_hpz_partition_size": 1}, True),
        ({"stage": 2}, False),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, False),
        ({"stage": 3, "zero_hpz_partition_size": 8}, False),
        ({"stage": 3, "zero_quantized_weights": True}, False),
        ({"stage": 3, "zero_quantized_nontrainable_weights": True}, False),
    ):
        path.write_text(json.dumps({"zero_optimization": section}))
        assert holds_weights(with_engine(base, str(path))) == holds, section
        assert not holds_weights(with_engine(base, str(path), holds=False))


def test_deepspeeds_throughput_timer_is_off_unless_the_file_switches_it_on(tmp_path):
    """It makes the host wait for the GPU before and after each micro batch."""
    geometry, path = BatchGeometry(8, 8, 1, 1), tmp_path / "own.json"
    found = []
    for timers in (None, {"other": 1}, {"throughput": {"enabled": True}}):
        path.write_text(json.dumps({} if timers is None else {"timers": timers}))
        config = compose_config([f"deepspeed.config={path}"])
        found.append(engine_values(config, geometry, 1)["timers"])
        assert read_engine_file(config).get("timers") == timers, "the signature has the contents of the file"
    assert found == [
        {"throughput": {"enabled": False}},
        {"throughput": {"enabled": False}, "other": 1},
        {"throughput": {"enabled": True}},
    ]


def test_deferred_gradients_are_refused_under_zero_3():
    for stage in range(4):
        config = compose_config([f"deepspeed=zero{stage}", "training.defer_gradients=true"])
        if stage < 3:
            read_engine_file(config)
        else:
            with pytest.raises(ConfigError, match=r"defer_gradients=true with ZeRO stage 3.*set deepspeed=zero2"):
                read_engine_file(config)
    with pytest.raises(ConfigError, match=r"defer_gradients=true needs model.attn_implementation=sdpa, found eager"):
        compose_config(["training.defer_gradients=true", "attn_implementation=eager"])


def test_engine_files_by_name():
    with pytest.raises(ConfigError, match=r"deepspeed.config=zero9: no such file.*zero0, zero1"):
        read_engine_file(compose_config(["deepspeed.config=zero9"]))
    with pytest.raises(ConfigError, match=r"bf16=true with ZeRO stage 0.*set deepspeed=zero1"):
        read_engine_file(compose_config(["deepspeed=zero0", "bf16=true"]))
    for stage in range(4):
        values = read_engine_file(compose_config([f"deepspeed=zero{stage}"]))
        assert values["zero_optimization"]["stage"] == stage
