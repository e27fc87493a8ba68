"""The configuration of one probing run, which examines the thoughts of a checkpoint."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.noise_kinds import ThoughtNoiseKind, noise_fault
from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.model import ModelConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.thought_noise import Dropout, Sigma
from coconut_ds.settings.types import MethodName, Natural, Positive

ProbeMode = Literal["think", "intervene", "effects", "attention", "patch", "graph"]
MODES = {
    "think": "one question: decode each thought at each layer, and show the answer after k thoughts",
    "intervene": "one question: change a thought and compare with controls",
    "effects": "a data set: answers after k thoughts, linear probes, mean effects of changed thoughts",
    "attention": "one question: what each thought attends to, by layer and head; on graphs with the edges marked",
    "patch": "two problems: replace the state of each layer at each position, and see which one carries the answer",
    "graph": "graph problems: values of nodes, frontiers in thoughts, superposition, changed thoughts and edges",
}
"""The modes of the program, each with what it does."""
FREE_TEXT = ("question", "donor", "token", "tokens")
"""Keys whose values are used exactly as written, without Hydra's parsing."""


class ProbeConfig(Group):
    """The configuration of one probing run."""

    mode: ProbeMode = "think"
    """The first word of the command line: think, intervene, effects, attention, patch or graph."""
    checkpoint: str
    """Model folder, run or folder of runs (then the best checkpoint), or state dict file of the reference."""
    question: str | None = None
    """The question (think, intervene, attention, patch)."""
    data: DataConfig | None = None
    """Group of config/data, or a file of problems."""
    data_name: str = ""
    """Name of the data in the output folder; set automatically."""
    problem: Natural = 0
    """Index, from 0, of the problem of the data to use when no question is given."""
    model: ModelConfig | None = None
    """Architecture and tokenizer of a state dict: a group of config/model."""
    method: MethodName | None = None
    """Method of a checkpoint that has no coconut.json."""
    n_thoughts: Natural | None = None
    """Number of thoughts or pause tokens; null: the checkpoint's."""
    max_new_tokens: Positive = 128
    """Maximum length of a generated text, in tokens."""
    top_k: Positive = 5
    """Number of tokens to show for each decoded hidden state."""
    tokens: tuple[str, ...] = ()
    """Tokens to track by rank and probability, separated by commas, such as a target and a foil."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the softmax that decodes hidden states."""
    thought: Positive = 1
    """Number, from 1, of the thought to change (intervene)."""
    kind: str = "noise"
    """How to change it: zero, mean, noise, random, patch, token, scale, swap, repeat, drop (intervene)."""
    strength: float = 1.0
    """Size of the noise relative to the thought's norm, or the factor of scale (intervene)."""
    other: Positive | None = None
    """Number, from 1, of the thought to exchange with (kind=swap)."""
    token: str | None = None
    """Token whose embedding replaces the thought (kind=token)."""
    donor: str | None = None
    """Question whose thought (kind=patch) or states (patch) replace those of the question; null: problems of the data
    with other answers."""
    positions: Literal["thoughts", "all"] = "thoughts"
    """Which states are replaced: those from the thoughts on, or all of them, for a donor of equal length (patch)."""
    draws: Positive = 8
    """Number of random draws (noise, random) and of donors (patch)."""
    later: Literal["recomputed", "kept"] = "recomputed"
    """Whether thoughts after the changed one are recomputed, or kept as they were."""
    pause: str | None = None
    """Checkpoint of a method with pause tokens, as a control (intervene)."""
    num_problems: Positive = 500
    """Maximum number of problems to use from the data."""
    num_fit: Positive = 1000
    """Number of problems on which linear probes are fitted (effects, graph)."""
    thought_noise: ThoughtNoiseKind = "none"
    """Noise on what thoughts feed back: gaussian or dropout, as in an evaluation (think)."""
    thought_sigma: Sigma | None = None
    """Standard deviation of the noise (thought_noise=gaussian), in the units of hidden states."""
    thought_dropout: Dropout | None = None
    """Share of the numbers that are set to 0 (thought_noise=dropout); the others are divided by 1 - thought_dropout."""
    sample: Natural = 0
    """Number, from 0, of the sample with noise: the same as in an evaluation with this seed (thought_noise)."""
    bf16: bool = False
    """Compute in bfloat16."""
    tf32: bool = False
    """On CUDA, multiply fp32 matrices in TF32 (see run.tf32)."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of generated problems and of random draws."""
    out: str | None = None
    """Folder for the results; null: outputs/probe/<checkpoint>/<mode>-<signature>. The signature is a hash of
    everything that can change a number."""
    overwrite: bool = False
    """Compute again, and replace the results in the folder. Otherwise finished results of the same command are shown,
    and those of another one are an error."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode in ("effects", "graph") and self.data is None:
            raise ValueError(f"{self.mode} needs problems; set data= to an option of config/data or a file")
        if self.question is None and self.data is None:
            raise ValueError("no question; set question='…', or data= and problem=")
        if fault := noise_fault(self.thought_noise, self.thought_sigma, self.thought_dropout):
            raise ValueError(fault)
        if self.thought_noise != "none" and self.mode != "think":
            raise ValueError(
                f"thought_noise={self.thought_noise}: {self.mode} examines thoughts without noise; only think takes it"
            )
        if self.sample and self.thought_noise == "none":
            raise ValueError(f"sample={self.sample}: without noise all samples are equal; set thought_noise")
        return self
