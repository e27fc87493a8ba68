"""The one typed, frozen configuration of an experiment; validated when made.

Every group of ``config/`` is one class here, every key a field with its meaning and unit below it. What Hydra composed
enters through ``Config.from_dict``; nothing further in sees Hydra or OmegaConf. Unknown keys, values of another type
and combinations that cannot work are refused at once, all of them in one message.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from coconut_ds.formats import FORMATS, Format
from coconut_ds.methods import METHODS
from coconut_ds.schema import Group, leaf_keys, validated

Positive = Annotated[int, Field(gt=0, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]


class RunConfig(Group):
    """Who and where: name, outputs, seed, logging, what to start from."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run; the first folder under save_path."""
    save_path: str = "outputs"
    """Folder under which the run's directory is made."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of weights, order of problems, stage mixing and generated data."""
    debug: bool = False
    """Small run: 32 validation and at most 5,000 training problems, no wandb."""
    bf16: bool = False
    """Compute in bfloat16 with fp32 master weights and accumulation (needs ZeRO stage 1, 2 or 3)."""
    only_eval: bool = False
    """Evaluate load_model_path, write the scores and stop; nothing is trained."""
    save_only_improve: bool = False
    """Write a checkpoint only when validation accuracy beats the best of the same stage."""
    load_model_path: str | None = None
    """Checkpoint to start from: a model folder or a state dict file of the reference implementation."""
    resume: Natural = 0
    """Epochs to skip at the start, e.g. those that the loaded CoT checkpoint stands for."""
    resume_mode: Literal["auto", "force", "never"] = "auto"
    """Which attempt to continue. Every launch starts a new one, so auto and never are the same and force is refused."""
    resume_attempt_id: str | None = None
    """An attempt to continue; refused, since every launch starts a new one."""
    signature_ignore_keys: tuple[str, ...] = ()
    """Dotted keys that do not count in the signature, the name of the folder that attempts of one run share."""
    project: str = "coconut-ds"
    """wandb project."""
    wandb_entity: str | None = None
    """wandb entity; null takes the account's default."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when logged in, else disabled with one line that says so."""


class SplitSizes(Group):
    """Problems in each split of a generated data set."""

    train: Positive = 6400
    """Training problems an epoch."""
    valid: Positive = 300
    """Validation problems."""
    test: Positive = 1000
    """Test problems."""


class DataConfig(Group):
    """Where problems come from."""

    kind: Literal["file", "modular_sum", "permutation_product", "synthetic", "prosqa_symbolic"]
    """file, or the name of a generator."""
    train_path: str | None = None
    """Training problems (kind=file)."""
    val_path: str | None = None
    """Validation problems (kind=file)."""
    test_path: str | None = None
    """Test problems (kind=file)."""
    made_by: str | None = None
    """The command that makes the files; shown when one is missing."""
    format: str = "text"
    """text: sentences; symbolic: triples of symbols, one target token a sequence (prosqa_symbolic)."""
    cache_path: str = "~/.cache/coconut-ds"
    """Folder for tokenized training files, shared by all runs."""
    max_new_tokens: Positive = 128
    """Longest generated text, in tokens."""
    size: SplitSizes = SplitSizes()
    """Problems a split (generated data)."""
    online: bool = True
    """Draw new training problems each epoch (generated data)."""
    num_terms: Annotated[int, Field(ge=2, strict=True)] = 4
    """Terms of a sum or product."""
    modulus: Annotated[int, Field(ge=2, strict=True)] = 10
    """Modulus of modular_sum."""
    num_nodes: tuple[Positive, Positive] = (16, 24)
    """Smallest and largest number of nodes (synthetic)."""
    num_layers: tuple[Positive, Positive] = (4, 6)
    """Smallest and largest number of layers (synthetic)."""
    num_edges: tuple[Positive, Positive] = (24, 40)
    """Smallest and largest number of edges (synthetic)."""

    num_hops: tuple[Positive, Positive] = (3, 4)
    """Smallest and largest number of edges from root to target (prosqa_symbolic)."""

    @field_validator("format")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in FORMATS:
            raise ValueError(f"unknown format; expected one of {', '.join(FORMATS)}")
        return value

    @property
    def text_format(self) -> Format:
        """What ``format`` names."""
        return FORMATS[self.format]

    @field_validator("num_nodes", "num_layers", "num_edges", "num_hops")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"smallest {value[0]} exceeds largest {value[1]}; write [smallest, largest]")
        return value


class MethodConfig(Group):
    """What the model is taught to do with the steps: one name of the registry."""

    kind: str
    """Name of a method in coconut_ds/methods."""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"unknown method; expected one of {', '.join(sorted(METHODS))}")
        return value


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


class TrainingConfig(Group):
    """Curriculum, batches and optimizer."""

    c_thought: Natural = 1
    """Thoughts that stand for one step (the paper's c)."""
    max_latent_stage: Natural = 6
    """Last stage that adds thoughts; past it all steps go and the number of thoughts stays (the paper's stages)."""
    epochs_per_stage: Positive = 5
    """Epochs a stage lasts under advance=epochs."""
    advance: Literal["epochs", "accuracy"] = "epochs"
    """Next stage after epochs_per_stage epochs, or once validation accuracy reaches advance_at."""
    advance_at: Share = 0.95
    """Share of validation problems wholly right (all remaining steps and the answer) that ends a stage."""
    min_epochs_per_stage: Positive = 1
    """Least number of epochs a stage lasts under advance=accuracy."""
    max_epochs_per_stage: Positive | None = None
    """Largest number of epochs a stage lasts under advance=accuracy; null: no bound."""
    stop_at: Share | None = None
    """Stop once the final stage has this share of validation problems wholly right; null: train num_epochs."""
    stage_switches: tuple[Natural, ...] | None = None
    """Epochs at which stages 1, 2, ... begin; replaces the rule of advance (to repeat another run's history)."""
    pad_latent_to_max: bool = True
    """true: every problem gets stage × c_thought thoughts; false: at most c_thought for each of its steps."""
    uniform_prob: Share = 0.0
    """Probability that a problem's stage is drawn uniformly from 0 to its number of steps."""
    tokens_per_epoch: Positive = 8
    """Step tokens that method=icot removes from one epoch to the next (one stage to the next under accuracy)."""
    replay_prob: Share = 0.0
    """Probability that a problem's stage is drawn uniformly from 0 to the current stage."""
    reset_optimizer: Literal["stage", "epoch", "never"] = "stage"
    """When optimizer state is set to zero: stage (each switch; the paper), epoch (also true), never (also false)."""
    loss_reduction: Literal["token", "reference"] = "token"
    """token: mean over all target tokens of the global batch; reference: mean over micro batches of their means."""
    global_batch_size: Positive | None = 128
    """Problems an optimizer update; null: micro batch × accumulation × ranks."""
    batch_size_training: Positive = 32
    """Problems in one forward pass on one rank (micro batch)."""
    gradient_accumulation_steps: Positive | None = None
    """Micro batches an update; null: derived from global_batch_size. Setting it replaces a preset global_batch_size."""
    batch_size_eval: Positive = 64
    """Problems in one validation pass on one rank."""
    num_epochs: Positive = 50
    """Epochs in all, the skipped ones (run.resume) included."""
    lr: Annotated[float, Field(gt=0, strict=True)] = 1e-4
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's coefficients."""
    eps: Annotated[float, Field(gt=0, strict=True)] = 1e-8
    """AdamW's denominator term."""
    warmup_steps: Natural = 0
    """Updates over which the learning rate rises linearly, counted from the last reset of the optimizer."""
    max_grad_norm: Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Largest gradient norm of an update; 0: no clipping."""

    @field_validator("reset_optimizer", mode="before")
    @classmethod
    def _reset_alias(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return "epoch" if value else "never"
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.uniform_prob and self.replay_prob:
            raise ValueError(
                f"uniform_prob={self.uniform_prob} and replay_prob={self.replay_prob} are both set; "
                "set one of them to 0"
            )
        if self.max_epochs_per_stage is not None and self.max_epochs_per_stage < self.min_epochs_per_stage:
            raise ValueError(
                f"max_epochs_per_stage={self.max_epochs_per_stage} is below "
                f"min_epochs_per_stage={self.min_epochs_per_stage}"
            )
        if self.stage_switches is not None and list(self.stage_switches) != sorted(self.stage_switches):
            raise ValueError(f"stage_switches={list(self.stage_switches)} must not fall")
        return self


class DeepSpeedConfig(Group):
    """The engine's file."""

    config: str
    """Name of a file of ds_configs/ (zero0 … zero3, zero2_offload, zero3_offload) or a path to a JSON file."""


class Config(Group):
    """One experiment."""

    run: RunConfig
    data: DataConfig
    method: MethodConfig
    model: ModelConfig
    training: TrainingConfig
    deepspeed: DeepSpeedConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [*self._file_problems(), *self._run_problems(), *self._format_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _file_problems(self) -> list[str]:
        if self.data.kind != "file":
            return []
        if self.run.only_eval:
            if not (self.data.test_path or self.data.val_path):
                return ["data.test_path: found null, expected a file to evaluate; set data.test_path=FILE"]
            return []
        return [
            f"data.{key}: found null, expected a file to train with; set data.{key}=FILE"
            for key in ("train_path", "val_path")
            if getattr(self.data, key) is None
        ]

    def _run_problems(self) -> list[str]:
        known = leaf_keys(type(self))
        problems = [
            f"run.signature_ignore_keys: found {key!r}, which is no key; expected dotted ones such as training.lr"
            for key in self.run.signature_ignore_keys
            if key not in known
        ]
        if self.run.only_eval and self.run.load_model_path is None:
            problems.append(
                "run.load_model_path: found null with run.only_eval=true, expected the checkpoint to evaluate; "
                "set load_model_path=PATH"
            )
        if self.model.attn_implementation.startswith("flash") and not self.run.bf16:
            problems.append(
                f"model.attn_implementation={self.model.attn_implementation} computes in half precision; "
                "set run.bf16=true, or model.attn_implementation=sdpa"
            )
        if self.run.resume and self.run.load_model_path is None:
            problems.append(
                f"run.resume={self.run.resume} skips epochs that a checkpoint stands for, but run.load_model_path is "
                "null; set load_model_path=PATH, or resume=0"
            )
        if not self.run.only_eval and self.run.resume >= self.training.num_epochs:
            problems.append(
                f"run.resume={self.run.resume} skips all of training.num_epochs={self.training.num_epochs}; "
                f"set run.resume below {self.training.num_epochs} or num_epochs above {self.run.resume}"
            )
        return problems

    def _format_problems(self) -> list[str]:
        if not self.data.text_format.one_token:
            return []
        problems = []
        if METHODS[self.method.kind].starts_thinking:
            problems.append(
                f"method.kind={self.method.kind}: the model begins to think by writing a marker, and "
                f"data.format={self.data.format} has none; set method=coconut"
            )
        if self.training.advance == "accuracy" and self.training.stage_switches is None:
            problems.append(
                f"training.advance=accuracy with data.format={self.data.format}: before the last stage several nodes "
                "are right, so accuracy does not say when a stage is learned; set training.advance=epochs"
            )
        return problems

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Validates plain composed values.

        Raises:
            ConfigError: naming each bad field, the value found and what was expected.
        """
        return validated(cls, values)


class EvalConfig(Group):
    """One evaluation."""

    checkpoint: str
    """Model folder."""
    data: DataConfig
    """Group of config/data, or a file of problems."""
    data_name: str = ""
    """Name of the data in the output folder; filled in."""
    method: str | None = None
    """Method of a folder without coconut.json."""
    n_thoughts: Natural | None = None
    """Number of thoughts; null: the checkpoint's."""
    batch_size: Positive = 64
    """Problems at a time."""
    bf16: bool = False
    """Compute in bfloat16 (needed by flash attention)."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2, flash_attention_3."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of generated problems."""
    out: str | None = None
    """Folder for the results; null: outputs/eval/<checkpoint>/<data>, with n_thoughts where it was given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attn_implementation.startswith("flash") and not self.bf16:
            raise ValueError(
                f"attn_implementation={self.attn_implementation} computes in half precision; set bf16=true"
            )
        return self

    @field_validator("method")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS:
            raise ValueError(f"unknown method; expected one of {', '.join(sorted(METHODS))}")
        return value
