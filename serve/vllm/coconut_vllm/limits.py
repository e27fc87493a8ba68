"""Refuses settings of the engine with which the model would not think, or think incorrectly.

It is called twice: when the configuration is made, so that a wrong one is refused before anything is loaded, and by the
model itself in each worker, which no entry point can go around.
"""

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from coconut_vllm.errors import NotSupported
from coconut_vllm.recognition import card_of, most_thoughts


def faults(config: Any) -> list[str]:
    """What is wrong with a vLLM configuration, one sentence for each setting."""
    parallel, scheduler, model = config.parallel_config, config.scheduler_config, config.model_config
    found = {
        "Model Runner V1 ignores the hook through which thoughts are fed back; set VLLM_USE_V2_MODEL_RUNNER=1, and "
        "leave out what V2 does not support": not config.use_v2_model_runner,
        "pipeline parallelism keeps states on other workers than embeddings; use --tensor-parallel-size instead of "
        "--pipeline-parallel-size": parallel.pipeline_parallel_size != 1,
        "context parallelism has not been made to think; leave out --decode-context-parallel-size and "
        "--prefill-context-parallel-size": any(
            getattr(parallel, name, 1) != 1
            for name in ("prefill_context_parallel_size", "decode_context_parallel_size")
        ),
        "data parallelism has not been tested; start one server for each replica, and leave out --data-parallel-size": (
            parallel.data_parallel_size != 1
        ),
        "overlapped batches are not supported; leave out --enable-dbo and --ubatch-size": (
            bool(getattr(parallel, "enable_dbo", False)) or getattr(parallel, "ubatch_size", 0) > 0
        ),
        "batch-sharded sampling hides states from workers; leave out --enable-batch-sharded-sampling": bool(
            getattr(parallel, "enable_batch_sharded_sampling", False)
        ),
        "speculative decoding would guess tokens where thoughts are; leave out --speculative-config": (
            config.speculative_config is not None
        ),
        "LoRA adapters change thoughts that requests share; merge the adapter into the model, and leave out "
        "--enable-lora": config.lora_config is not None,
        "priority scheduling may resume a request after its thoughts were dropped; leave out --scheduling-policy": (
            scheduler.policy != "fcfs"
        ),
        "connectors move keys and values without the thoughts; leave out --kv-transfer-config and "
        "--ec-transfer-config": (
            config.kv_transfer_config is not None or getattr(config, "ec_transfer_config", None) is not None
        ),
        "embeddings as prompts have no token ids to check; leave out --enable-prompt-embeds": bool(
            model.enable_prompt_embeds
        ),
        "traces would overwrite thoughts; leave out --enable-trace-replay": bool(
            getattr(model, "enable_trace_replay", False)
        ),
        "watermarks need vLLM's own sampler; leave out --watermark-config": (
            getattr(config, "watermark_config", None) is not None
        ),
        "only text generation is served; leave out --runner and --convert": model.runner_type != "generate",
        "vLLM must use the plugin's class of the model; leave out --model-impl": str(
            getattr(model.model_impl, "value", model.model_impl)
        )
        not in ("auto", "vllm"),
    }
    return [text for text, is_wrong in found.items() if is_wrong]


def check_engine(config: Any) -> None:
    """Refuses a vLLM configuration with one of the plugin's models.

    Raises:
        NotSupported: names every setting that is wrong, and what to set instead.
    """
    if found := faults(config):
        raise NotSupported("coconut-vllm cannot serve with these settings: " + ". ".join(found))
    card = card_of(config.model_config)
    if card is None:
        raise NotSupported(f"{config.model_config.model}: has no coconut.json, so it does not say how it thinks")
    most_thoughts(config, card)
    vocabulary = config.model_config.get_vocab_size()
    if max(card.markers.all) >= vocabulary:
        raise NotSupported(
            f"{config.model_config.model}: coconut.json names marker {max(card.markers.all)}, but the model has only "
            f"{vocabulary} embeddings, so these files are not of one checkpoint; copy it again"
        )


class CheckedConfig(VerifyAndUpdateConfig):
    """vLLM asks it about every configuration with one of the plugin's models, before anything is loaded."""

    @staticmethod
    def verify_and_update_config(vllm_config: object) -> None:
        """Refuses settings with which the model would not think, or think incorrectly."""
        check_engine(vllm_config)
