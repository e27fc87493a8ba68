"""Section ``environment``: versions, the device, what it reaches, and which attention kernels torch chooses."""

import platform
import time
from collections.abc import Callable
from importlib import metadata

import torch
from generation_workload import synchronise
from torch.nn.attention import SDPBackend
from training_workload import matrix_peak

from gpu.hardware import card_of
from gpu.report import Report
from gpu.workload import Options

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "deepspeed", "hydra-core", "omegaconf", "pydantic", "peft"),
    *("flash-attn", "liger-kernel", "numpy"),
)
FUSED, FLASH_OR_CUDNN = (
    {"FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"},
    {
        "FLASH_ATTENTION",
        "CUDNN_ATTENTION",
    },
)


def run(report: Report, options: Options) -> None:
    """Fills the report."""
    report.number("python", platform.python_version())
    report.number("versions", {name: version for name in PACKAGES if (version := _version(name))})
    report.number("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads")
    report.number("device", device_name(options))
    if options.on_gpu:
        _describe_gpu(report)
    report.say(f"{device_name(options)}, torch {torch.__version__}")
    _measure_limits(report, options)
    kernels = attention_kernels(options.device)
    report.number("attention_kernels", kernels)
    if options.on_gpu:
        _check_kernels(report, kernels)
    else:
        report.skip("which kernels are expected", "needs a CUDA device")


def device_name(options: Options) -> str:
    """The name of the GPU as torch reports it, or ``cpu``."""
    return torch.cuda.get_device_name() if options.on_gpu else "cpu"


def reached(options: Options, kind: str) -> float:
    """FLOP/s of large matrix products in ``kind``: bf16, tf32 or fp32."""
    # "high" multiplies fp32 matrices in TF32 on devices that have it.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        return matrix_peak(options.device, dtype, (128,) if options.small else ())
    finally:
        torch.set_float32_matmul_precision(before)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy of ``size`` bytes reads and writes: the best of nine."""
    source = torch.ones(size // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(_seconds(lambda: target.copy_(source), device) for _ in range(9))


def launch_seconds(device: torch.device, count: int = 2000) -> float:
    """Seconds of the CPU for one operation that launches one small kernel."""
    value = torch.zeros(8, device=device)

    def many() -> None:
        for _ in range(count):
            value.add_(1)

    _seconds(many, device)
    return min(_seconds(many, device) for _ in range(3)) / count


def attention_kernels(device: torch.device) -> dict[str, str]:
    """The kernel that torch chooses for each kind of pass, type and grouping of heads, as the name of an SDPBackend."""
    names = {int(value): name for name, value in SDPBackend.__members__.items()}
    found = {}
    for dtype_name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for heads, kv_heads in (("all heads", 8), ("grouped heads", 2)):
            for kind in ("prefix", "continuation"):
                query = torch.randn(2, 8, 128, 64, device=device, dtype=dtype, requires_grad=True)
                key = torch.randn(2, kv_heads, 128, 64, device=device, dtype=dtype, requires_grad=True)
                mask = None if kind == "prefix" else torch.ones(2, 1, 128, 128, device=device, dtype=torch.bool)
                chosen = torch._fused_sdp_choice(query, key, key, mask, 0.0, kind == "prefix", enable_gqa=kv_heads != 8)
                found[f"{kind}, {dtype_name}, {heads}"] = names.get(chosen, str(chosen))
    return found


def _describe_gpu(report: Report) -> None:
    found = torch.cuda.get_device_properties(0)
    report.number("gpu_memory_gib", round(found.total_memory / 2**30, 1))
    report.number("gpus", torch.cuda.device_count())
    report.number("cuda", torch.version.cuda)
    report.number("cudnn", torch.backends.cudnn.version())
    report.number("compute_capability", f"{found.major}.{found.minor}")
    report.check(
        "bf16 is supported", torch.cuda.is_bf16_supported(False), f"{found.major}.{found.minor}", "8.0 or more"
    )


def _measure_limits(report: Report, options: Options) -> None:
    card = card_of(device_name(options))
    report.number("card", card.name if card else None)
    for kind in ("fp32",) if options.small else ("fp32", "tf32", "bf16"):
        flops = reached(options, kind)
        report.number(f"matrix_tflops_{kind}", round(flops / 1e12, 2))
        if card:
            share = flops / card.peak(kind)
            report.number(f"matrix_share_{kind}", round(share, 3))
            report.check(f"{kind} products", share > 0.5, f"{share:.0%} of the data sheet", "more than 50 %")
    bytes_per_s = bandwidth(options.device, 2**22 if options.small else 2**30)
    report.number("bandwidth_gb_per_s", round(bytes_per_s / 1e9, 1))
    if card:
        share = bytes_per_s / 1e9 / card.bandwidth
        report.number("bandwidth_share", round(share, 3))
        report.check("bandwidth", share > 0.6, f"{share:.0%} of the data sheet", "more than 60 %")
    report.number("launch_us", round(launch_seconds(options.device, 200 if options.small else 2000) * 1e6, 2))


def _check_kernels(report: Report, kernels: dict[str, str]) -> None:
    # fp32 with grouped heads has no fused kernel, so the model repeats the keys (``model.attention``); the sections
    # ``trace`` and ``correctness`` run that.
    for name, kernel in kernels.items():
        if name.startswith("prefix, bf16"):
            report.check(f"kernel of {name}", kernel in FLASH_OR_CUDNN, kernel, "flash or cuDNN")
        elif "grouped" not in name:
            report.check(f"kernel of {name}", kernel in FUSED, kernel, "any fused kernel")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began
