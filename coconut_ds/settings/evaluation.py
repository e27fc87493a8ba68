"""The configuration of one evaluation."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from coconut_ds.noise_kinds import ThoughtNoiseKind, noise_fault
from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.model import ModelConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.thought_noise import Dropout, Sigma
from coconut_ds.settings.types import MethodName, Natural, Positive

SWEPT = ("n_thoughts", "force_text_after")
"""Keys that take one number, or several numbers for a sweep."""


class EvalConfig(Group):
    """The configuration of one evaluation."""

    checkpoint: str
    """Model folder, run or folder of runs (then the best checkpoint), or state dict file of the reference."""
    data: DataConfig
    """Group of config/data, or a file of problems."""
    data_name: str = ""
    """Name of the data in the output folder; set automatically."""
    model: ModelConfig | None = None
    """Architecture and tokenizer of a state dict: a group of config/model."""
    method: MethodName | None = None
    """Method of a checkpoint that has no coconut.json."""
    n_thoughts: Natural | tuple[Natural, ...] | None = None
    """Number of thoughts; null: the checkpoint's. Several numbers (0,1,2) are a sweep."""
    force_text_after: Natural | tuple[Natural, ...] | None = None
    """End thinking after this number of thoughts. Several numbers (0,1,2) are a sweep."""
    min_thoughts: Natural | None = None
    """Let the model end thinking by itself, but not before this number of thoughts."""
    max_thoughts: Natural | None = None
    """Let the model end thinking by itself, at the latest after this number of thoughts."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0: greedy decoding."""
    top_k: Positive | None = None
    """Sample only from the k most likely tokens (needs temperature)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the most likely tokens that together have this probability (needs temperature)."""
    thought_noise: ThoughtNoiseKind = "none"
    """Noise on what thoughts feed back. gaussian: a normal number is added to each number. dropout: one mask for each
    sample sets some numbers to 0, the same ones for all its thoughts. Drawn by (seed, question, sample, thought)."""
    thought_sigma: Sigma | None = None
    """Standard deviation of the noise (thought_noise=gaussian), in the units of hidden states."""
    thought_dropout: Dropout | None = None
    """Share of the numbers that are set to 0 (thought_noise=dropout); the others are divided by 1 - thought_dropout."""
    samples: Positive | None = None
    """Number of answers to each problem, which differ by thought_noise, by temperature, or both; for pass@k, coverage
    and majority vote. null: one answer."""
    batch_size: Positive = 64
    """Number of problems in one batch."""
    bf16: bool = False
    """Compute in bfloat16 (required by flash attention)."""
    tf32: bool = False
    """On CUDA, multiply fp32 matrices in TF32 (see run.tf32)."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2 or flash_attention_3."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of generated problems and of sampling."""
    out: str | None = None
    """Folder for the results; null: outputs/eval/<checkpoint>/<data>-<signature>. The signature is a hash of everything
    that can change a number."""
    overwrite: bool = False
    """Evaluate again, and replace the results in the folder. Otherwise finished results of the same evaluation are
    shown, and those of another one are an error."""

    @property
    def is_sweep(self) -> bool:
        """Whether several numbers of thoughts are evaluated."""
        return any(isinstance(getattr(self, key), tuple) for key in SWEPT)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attn_implementation.startswith("flash") and not self.bf16:
            raise ValueError(
                f"attn_implementation={self.attn_implementation} computes in half precision; set bf16=true"
            )
        if all(isinstance(getattr(self, key), tuple) for key in SWEPT):
            raise ValueError("n_thoughts and force_text_after both have several numbers; sweep only one of them")
        for key in SWEPT:
            value = getattr(self, key)
            if isinstance(value, tuple) and len(set(value)) != max(len(value), 1):
                raise ValueError(f"{key}={list(value)}: expected different numbers, at least one")
        if (self.top_k is not None or self.top_p < 1) and not self.temperature:
            raise ValueError("top_k and top_p need sampling; set temperature too, or leave them out")
        if (self.samples or 1) > 1 and self.thought_noise == "none" and not self.temperature:
            raise ValueError(
                f"samples={self.samples}: all answers to a problem would be equal; set thought_noise or temperature"
            )
        if fault := noise_fault(self.thought_noise, self.thought_sigma, self.thought_dropout):
            raise ValueError(fault)
        return self
