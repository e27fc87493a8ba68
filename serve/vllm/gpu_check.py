"""Checks the plugin on GPUs: graphs, asynchronous scheduling, preemption, two GPUs, FlashInfer's sampler.

    python serve/vllm/gpu_check.py                    # in vLLM's environment; about ten minutes, mostly starts
    python serve/vllm/gpu_check.py --only eager       # one of the checks

It needs no checkpoint: the tiny ones of the tests are built, and the answers are compared with the reference tokens of
the project's own engine on a CPU. GPUs round differently, so another token is accepted where vLLM itself finds the two
almost equally probable (``MARGIN``); what follows it cannot be compared. The check fails if too few answers are
compared to their end.

Each check runs in a process of its own. Exit code 0: all passed, or were skipped because there is only one GPU.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parent / "tests"
MARGIN = 0.02
"""Largest difference of two log probabilities that counts as equal."""
LEAST_COMPARED = 0.8
"""Share of the answers that must be compared to their end."""
PREEMPTING = {"num_gpu_blocks_override": 13, "block_size": 16, "max_num_batched_tokens": 32, "max_num_seqs": 8}
CHECKS: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "piecewise graphs": {"compilation_config": {"cudagraph_mode": "PIECEWISE"}},
    "full graphs": {"compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}},
    "asynchronous with preemption": {**PREEMPTING, "async_scheduling": True},
    "two GPUs": {**PREEMPTING, "tensor_parallel_size": 2, "async_scheduling": True},
    "flashinfer": {"temperature": 1.0},
}
NAMES = ("gpt2", "llama", "qwen3", "codi", "deciding", "reversed")


def disagreement(output: Any, right: list[int], hidden: set[int]) -> tuple[str | None, bool]:
    """Compares the text of an output with the tokens ``right``.

    Returns what is wrong, and whether the comparison reached the end.
    """
    made = output.outputs[0]
    written = [(token, row) for token, row in zip(made.token_ids, made.logprobs, strict=True) if token not in hidden]
    for (token, row), expected in zip(written, right, strict=False):
        if token != expected:
            if expected in row and row[token].logprob - row[expected].logprob < MARGIN:
                return None, False
            return f"token {token} instead of {expected}: {row}", False
    return (None, True) if len(written) >= len(right) else (f"{len(written)} tokens instead of {len(right)}", False)


def run(check: str, folder: Path) -> None:
    """One check, in this process.

    Raises:
        SystemExit: an answer is wrong.
    """
    sys.path.insert(0, str(TESTS))
    import tiny
    from vllm import LLM, SamplingParams

    changed = dict(CHECKS[check])
    temperature = changed.pop("temperature", 0.0)
    common = {"max_model_len": 128, "dtype": "float32", "additional_config": {"coconut": {"max_thoughts": 8}}}
    references = json.loads((TESTS / "data" / "reference.json").read_text(encoding="utf-8"))
    ids = tiny.tokenizer().get_vocab()
    hidden = {ids["<|latent|>"], ids["<|end-latent|>"]}
    for name in NAMES:
        llm = LLM(str(tiny.build(name, folder)), gpu_memory_utilization=0.3, **(common | changed))
        asked = tiny.asked(name)
        # A seed, or a greedy request, would keep vLLM from FlashInfer's sampler.
        others = {"temperature": temperature, "top_k": 20, "top_p": 0.9} if temperature else {"temperature": 0.0}
        params = [SamplingParams(max_tokens=12, logprobs=5, extra_args=extra, **others) for _, extra in asked]
        outputs = llm.generate([text for text, _ in asked], params)
        answers = references[name]["answers"]
        if temperature:
            forced = [list(output.outputs[0].token_ids).count(ids["<|latent|>"]) for output in outputs]
            faults = [] if name in ("deciding", "reversed") or forced == [a["thoughts"] for a in answers] else [forced]
            compared = len(outputs)
        else:
            found = [disagreement(o, a["tokens"], hidden) for o, a in zip(outputs, answers, strict=True)]
            faults, compared = [fault for fault, _ in found if fault], sum(is_whole for _, is_whole in found)
        print(f"{check}, {name}: {len(faults)} wrong, {compared} of {len(outputs)} compared to the end", flush=True)
        if faults or compared < LEAST_COMPARED * len(outputs):
            raise SystemExit(f"{check}, {name}: {faults[:3]}")
        llm.llm_engine.engine_core.shutdown()
        del llm


def main() -> None:
    """Runs the checks from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CHECKS), action="append", help="run this check; may be repeated")
    parser.add_argument("--inside", metavar="CHECK", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        if arguments.inside:
            run(arguments.inside, Path(folder))
            return
    import torch

    failed = []
    for check in arguments.only or CHECKS:
        if check == "two GPUs" and torch.cuda.device_count() < 2:
            print(f"{check}: skipped, since there is only one")
            continue
        environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "1"}
        if check == "flashinfer":
            environment["VLLM_USE_FLASHINFER_SAMPLER"] = "1"
        failed += [check] if subprocess.call([sys.executable, __file__, "--inside", check], env=environment) else []
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
