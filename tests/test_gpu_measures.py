"""What the GPU check computes from measurements: operations and MFU, and counts of what a profiler's trace holds."""

import json
import re
import sys
from pathlib import Path

import pytest

from coconut_ds.methods.layout import Layout

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from gpu.hardware import CARDS, card_of, mfu
from gpu.trace_events import count, read_trace
from training_workload import make_config, operations


@pytest.mark.parametrize("name", ["gpt2_small", "llama_1b"])
def test_operations_equal_a_count_position_by_position(name):
    """Two operations for each weight and product that a position takes part in, and twice as many backwards."""
    config = make_config(name, 100)
    layout = Layout([1] * 9, [-100] * 6 + [1] * 3, first_thought=4, num_thoughts=2)
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    head_size = width // heads
    key_heads = getattr(config, "num_key_value_heads", heads)
    inner, matrices = (config.intermediate_size, 3) if name == "llama_1b" else (4 * width, 2)
    forward = 0
    for layer in range(layers):
        for position in range(9):
            for columns in (heads * head_size, key_heads * head_size, key_heads * head_size):
                forward += 2 * width * columns
            for _ in range(position + 1):
                # A score, and a row of values that is added with its weight.
                forward += heads * (2 * head_size + 2 * head_size)
            # In the last layer, states of the question before the one that becomes the first thought are not read.
            if layer < layers - 1 or position >= 3:
                forward += 2 * heads * head_size * width + matrices * 2 * width * inner
    forward += 3 * 2 * width * 100
    assert operations(config, [layout]) == pytest.approx(3 * forward, rel=1e-12)


def test_mfu_is_useful_operations_over_what_the_peak_could_do():
    card = card_of("NVIDIA A100-SXM4-80GB")
    assert card is not None
    # 78 TFLOP in half a second are 156 TFLOP/s: half of 312 in bf16, all of 156 in TF32, eight times 19.5 in fp32.
    assert [mfu(78e12, 0.5, card.peak(kind)) for kind in ("bf16", "tf32", "fp32")] == pytest.approx([0.5, 1, 8])


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_known_by_the_name_that_torch_reports(reported, name):
    card = card_of(reported)
    assert (card and card.name) == name
    assert len([each for each in CARDS if re.search(each.pattern, reported)]) == (name is not None)


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None) -> dict:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


TRACE = [
    event("user_annotation", "loop", 100, 100),
    event("gpu_user_annotation", "loop", 150, 300),
    event("cpu_op", "aten::_scaled_dot_product_cudnn_attention", 110, 5),
    event("cpu_op", "aten::_scaled_dot_product_cudnn_attention_backward", 116, 5),
    event("cpu_op", "aten::scaled_dot_product_attention", 109, 9),
    event("cpu_op", "aten::_scaled_dot_product_attention_math", 120, 5),
    event("cuda_runtime", "cudaLaunchKernel", 111, 2, 1),
    event("cuda_driver", "cuLaunchKernelEx", 121, 2, 2),
    event("cuda_runtime", "cudaMemcpyAsync", 130, 2, 3),
    event("cuda_runtime", "cudaStreamSynchronize", 133, 9, 4),
    event("cuda_runtime", "cudaEventRecord", 143, 1, 5),
    # Work on the GPU begins later than its launch; two kernels overlap by 10, and a third runs after the block's end.
    event("kernel", "cudnn_generated_fort_native_sdpa", 150, 20, 1),
    event("kernel", "gemm", 160, 30, 2),
    event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 230, 10, 3),
    # Outside of the block.
    event("cuda_runtime", "cudaLaunchKernel", 90, 2, 9),
    event("kernel", "other", 95, 100, 9),
    event("cuda_runtime", "cudaDeviceSynchronize", 201, 50, 10),
    {"ph": "M", "name": "process_name"},
]


def test_a_trace_is_counted_within_its_marked_blocks(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": TRACE}))
    found = count(read_trace(path), "loop")
    assert found.attention == {"cudnn": 1, "math": 1}
    assert (found.blocks, found.launches, found.synchronisations) == (1, 2, 1)
    assert found.copies == {"HtoD (Pageable -> Device)": 1}
    # From 150 to 190 and from 230 to 240; the block with its work lasts from 100 to 240.
    assert (found.busy_s, found.seconds) == pytest.approx((50e-6, 140e-6))
    with pytest.raises(ValueError, match="no block named 'update'"):
        count(read_trace(path), "update")
