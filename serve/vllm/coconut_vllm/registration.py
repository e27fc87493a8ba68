"""Tells vLLM about the plugin: models, recognition of checkpoints, and what happens to each request."""

from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from coconut_vllm import hooks, recognition
from coconut_vllm.limits import check_engine


class CheckedConfig(VerifyAndUpdateConfig):
    """vLLM asks it about every configuration with one of the plugin's models, before anything is loaded."""

    @staticmethod
    def verify_and_update_config(vllm_config: object) -> None:
        """Refuses settings with which the model would not think, or not rightly."""
        check_engine(vllm_config)


def register_all() -> None:
    """May be called more than once in a process."""
    for name in recognition.ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"coconut_vllm.models:{name}")
        MODELS_CONFIG_MAP[name] = CheckedConfig
    recognition.install()
    # Where a hook differs, recognition refuses each checkpoint of ours, and other models are not touched.
    if hooks.fault() is None:
        from coconut_vllm import front_end

        front_end.install()
