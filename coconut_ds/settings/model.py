"""The groups ``method`` and ``model``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Decay, MethodName, Natural, Positive


class MethodConfig(Group):
    """What the model is taught to do with the steps: one name of the registry."""

    kind: MethodName
    """Name of a method in coconut_ds/methods."""
    thinking: Literal["sequential", "jacobi"] = "sequential"
    """sequential: each thought after the one before; jacobi: all thoughts at once, several times (PCCoT)."""
    iterations: Positive = 3
    """Passes over all thoughts under thinking=jacobi; as many as there are thoughts equal sequential thinking."""

    @property
    def jacobi_iterations(self) -> int | None:
        """Passes over all thoughts; None where they come one by one."""
        return self.iterations if self.thinking == "jacobi" else None


class LoraConfig(Group):
    """Low-rank adapters (needs the package peft)."""

    rank: Natural = 0
    """Rank of the trained differences of the frozen weights (LoRA); 0: no adapters, all weights are trained."""
    alpha: Annotated[float, Field(gt=0, strict=True)] = 32.0
    """LoRA's differences are scaled by alpha / rank."""
    dropout: Decay = 0.0
    """Dropout on what enters LoRA's differences."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get adapters, such as q_proj; empty: all linear layers but the head."""


class ModelConfig(Group):
    """The backbone and its tokenizer."""

    model_id: str
    """Hugging Face name or local folder of the backbone (for scratch models: of its architecture), or a bare model
    type such as gpt2 with model_config_overrides."""
    model_init: Literal["pretrained", "scratch"] = "pretrained"
    """pretrained: load the weights of model_id; scratch: random weights from its configuration."""
    model_config_overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys of the Hugging Face configuration to replace (scratch only)."""
    tokenizer: str | None = None
    """Tokenizer folder or name; dataset builds a word-level one from the problems; null takes model_id's."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2, flash_attention_3."""
    lora: LoraConfig = Field(default_factory=LoraConfig)
    """Low-rank adapters."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model_init == "pretrained" and self.model_config_overrides:
            raise ValueError(
                "model_config_overrides change the architecture, which pretrained weights would not fit; "
                "set model.model_init=scratch or model.model_config_overrides={}"
            )
        if self.model_init == "pretrained" and self.tokenizer == "dataset":
            raise ValueError(
                "tokenizer=dataset gives words ids that pretrained weights do not know; "
                "set model.tokenizer=null or model=gpt2_scratch_small"
            )
        return self
