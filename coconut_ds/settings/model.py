"""The groups ``method`` and ``model``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Decay, MethodName, Natural, Positive


class MethodConfig(Group):
    """How reasoning steps are replaced during training, and how thoughts are computed."""

    kind: MethodName
    """Name of a method in coconut_ds/methods."""
    thinking: Literal["sequential", "jacobi", "looped"] = "sequential"
    """sequential: compute each thought after the one before. jacobi: compute all thoughts at once, in several passes
    (PCCoT). looped: the same, but each pass adds the state of a position to the input of that position (LOTUS)."""
    iterations: Positive | None = 3
    """Number of passes over all thoughts that feed states back (thinking=jacobi, looped). With as many passes as
    thoughts, jacobi equals sequential thinking. null: one for each block of c_thought thoughts (looped only)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.iterations is None and self.thinking == "jacobi":
            raise ValueError("iterations=null needs thinking=looped, found jacobi; set method.iterations to a number")
        return self


class LoraConfig(Group):
    """Low-rank adapters (needs the package peft)."""

    rank: Natural = 0
    """Rank of the low-rank updates that are trained while the original weights are frozen; 0: no adapters, train all
    weights."""
    alpha: Annotated[float, Field(gt=0, strict=True)] = 32.0
    """The low-rank updates are scaled by alpha / rank."""
    dropout: Decay = 0.0
    """Dropout on the inputs of the low-rank updates."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get adapters, such as q_proj; empty: all linear layers except the output head."""


class ModelConfig(Group):
    """The backbone and its tokenizer."""

    model_id: str
    """Hugging Face name or local folder of the backbone. With model_init=scratch only its architecture is used, and a
    model type such as gpt2 is accepted too, together with model_config_overrides."""
    model_init: Literal["pretrained", "scratch"] = "pretrained"
    """pretrained: load the weights of model_id. scratch: random weights, in the architecture of model_id."""
    model_config_overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys of the Hugging Face configuration to replace (model_init=scratch only). Keys on the command line add to
    those of the option of model; model_config_overrides={} before them drops those, as another model_id needs it."""
    tokenizer: str | None = None
    """Tokenizer folder or hub name. dataset: a word-level tokenizer built from the problems; null: the tokenizer of
    model_id."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2 or flash_attention_3."""
    fused_kernels: Literal["off", "auto", "on"] = "off"
    """Kernels for CUDA: Liger's RMSNorm, SwiGLU and rotary embeddings (Llama, Mistral, Qwen2, Qwen3), and attention of
    the latent loop's later passes in Triton (attn_implementation=sdpa, no dropout of attention weights). off: none.
    auto: those whose packages are installed. on: all, or an error that says what is missing. They change rounding."""
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
                "tokenizer=dataset assigns token ids that do not fit pretrained weights; "
                "set model.tokenizer=null or model=gpt2_scratch_small"
            )
        return self
