"""Tells vLLM about the plugin: models, recognition of checkpoints, and what happens to each request.

vLLM calls it in every process, also for models that are not of this project. So nothing that a vLLM might lack is
imported before ``hooks`` has checked that it is there.
"""

import logging

from coconut_vllm import hooks

log = logging.getLogger(f"vllm.{__name__}")


def register_all() -> None:
    """May be called more than once in a process."""
    if fault := hooks.fault(recognition_only=True):
        log.warning(
            "coconut-vllm is not active, so models that reason in continuous thoughts would not think: %s", fault
        )
        return
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from coconut_vllm import limits, recognition

    for name in recognition.ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"coconut_vllm.models:{name}")
        MODELS_CONFIG_MAP[name] = limits.CheckedConfig
    recognition.install()
    # Where another hook differs, recognition refuses each checkpoint of ours, and other models are not touched.
    if hooks.fault() is None:
        from coconut_vllm import front_end

        front_end.install()
