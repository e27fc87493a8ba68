"""An engine of vLLM that answers the same requests each time a line arrives: a part of ``benchmarks/vllm.py``.

    python timed_engine.py CHECKPOINT PROMPTS.json KIND DTYPE

``KIND`` is ``plugin``, ``compiled`` (the plugin, with a compiled model) or ``stock``: vLLM without thoughts, which
writes equally many tokens. Prints ``RESULT ready``, and then ``RESULT`` with the seconds for each line that it reads.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401 - sets vLLM up before it is imported
import torch
from vllm import LLM, SamplingParams


def requests(workload: dict[str, Any], is_stock: bool) -> tuple[list[Any], SamplingParams]:
    """The prompts and their sampling parameters."""
    thoughts, new = workload["thoughts"], workload["new_tokens"]
    if not is_stock:
        prompts = [{"prompt_token_ids": ids} for ids in workload["prompts"]]
        extra = {"n_thoughts": thoughts}
        return prompts, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, extra_args=extra)
    prompts = [{"prompt_token_ids": [*ids, workload["start"]]} for ids in workload["prompts"]]
    return prompts, SamplingParams(temperature=0, max_tokens=thoughts + 1 + new, ignore_eos=True)


def main() -> None:
    """Answers until its input ends."""
    folder, file, kind, dtype = sys.argv[1:]
    workload = json.loads(Path(file).read_text(encoding="utf-8"))
    written = workload["thoughts"] + 1 + workload["new_tokens"]
    llm = LLM(
        folder,
        dtype=dtype,
        enforce_eager=kind != "compiled",
        block_size=32,
        # With the marker that begins the thoughts.
        max_model_len=max(map(len, workload["prompts"])) + 1 + written,
        max_num_seqs=workload["slots"],
        enable_prefix_caching=False,
    )
    threads = int(os.environ["OMP_NUM_THREADS"])
    if torch.get_num_threads() != threads:
        raise RuntimeError(f"the engine computes with {torch.get_num_threads()} threads instead of {threads}")
    prompts, params = requests(workload, kind == "stock")
    print("RESULT ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert {len(one.outputs[0].token_ids) for one in outputs} == {written}
        print(f"RESULT {seconds}", flush=True)


if __name__ == "__main__":
    main()
