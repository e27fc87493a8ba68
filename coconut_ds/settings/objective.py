"""The group ``objective``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Natural, Positive


class CodiConfig(Group):
    """Self-distillation (kind=codi): the model with thoughts learns from itself with the steps written out."""

    gamma: Annotated[float, Field(ge=0, strict=True)] = 1.0
    """Factor of the distance between the states of student and teacher; in the paper 1 for GPT-2, 20 for Llama 3.2
    1B."""
    teacher_weight: Annotated[float, Field(ge=0, strict=True)] = 1.0
    """Factor of the cross entropy of the written steps and the answer."""
    distance: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Distance of two states, a mean over their numbers. smooth_l1: half the square below 1, the absolute value less
    1/2 above. l2: the square."""
    divide_by_std: bool = True
    """Divide the differences in each layer by the standard deviation of the teacher's states there, over all rows of
    the micro batch and all their numbers (distance=l2: by its square)."""
    teacher_last_step: bool = False
    """Whether the teacher reads the last step too. It usually contains the answer, which the teacher then only
    copies."""


class LotusConfig(Group):
    """Thoughts that learn to predict the tokens of the steps that they replace (kind=lotus)."""

    step_weight: Annotated[float, Field(ge=0, strict=True)] = 0.05
    """Weight of the cross entropy of the steps' tokens (the paper's λ)."""
    in_loop: bool = False
    """false: all blocks of thoughts are read after the last round. true: block k (from 1) is read after round k."""
    flat: bool = False
    """false: step k has the places of block k, and is cut to c_thought tokens. true: the tokens of all steps are packed
    from the first thought on, without gaps."""


class SimCotConfig(Group):
    """SIM-CoT (kind=sim_cot, or sim_cot_codi on top of codi): an auxiliary decoder must write each step from the
    thoughts that stand for it."""

    decoder_layers: Positive | None = None
    """Number of layers of the decoder, at most those of the model; null: as many."""
    decoder_width: Positive | None = None
    """Hidden size of the decoder; null: that of the model. Another width needs decoder_init=random."""
    decoder_init: Literal["model", "random"] = "model"
    """The decoder's first weights. model: those of the model's first layers, final norm and output head. random: drawn
    from run.seed."""
    step_factor: Annotated[float, Field(gt=0, strict=True)] = 1.0
    """Factor of the decoder's loss."""
    step_reduction: Literal["token", "thought", "row"] = "token"
    """Which mean the decoder's loss is. token: over all target tokens of the global batch. thought: over the tokens of
    each group of thoughts, then over the groups that have any (SIM-CoT on CODI). row: sum over the tokens of a target,
    then mean over all targets (SIM-CoT on Coconut; about ten times as large)."""
    missing_step: Literal["answer", "nothing"] = "answer"
    """What the decoder must write for a group of thoughts where a problem has fewer steps than groups. answer: the
    answer (SIM-CoT on Coconut). nothing: such groups are left out (SIM-CoT on CODI)."""
    from_stage: Natural = 0
    """First curriculum stage with the decoder's loss. Before it, only weight_decay changes the decoder's weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decoder_width is not None and self.decoder_init == "model":
            raise ValueError(
                f"decoder_width={self.decoder_width} is another width than the model's, whose weights would not fit; "
                "set objective.sim_cot.decoder_init=random, or decoder_width=null"
            )
        return self


class SupervisedThoughtsConfig(Group):
    """Thoughts that learn to predict the nodes at their hop (kind=supervised_thoughts)."""

    thought_targets: Literal["frontier", "path"] = "frontier"
    """What the state that becomes the thought of step i must predict. frontier: all nodes at distance i from the root,
    with equal probability; each problem needs a graph (the keys of ProsQA's files). path: the node to which step i of
    the solution leads; any problems with steps, also without a graph."""
    thought_weight: Annotated[float, Field(gt=0, strict=True)] = 1.0
    """Factor of the cross entropy of these predictions, which is a mean over them."""
    thought_of_step: Literal["last", "first", "all"] = "last"
    """Which of the c_thought thoughts or pause tokens of a step must predict."""


class GrpoConfig(Group):
    """Reinforcement learning of sampled completions (kind=grpo). Where trl has the same option, it has the same
    name."""

    reward: Annotated[str, Field(pattern=r"^(exact_answer|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = "exact_answer"
    """exact_answer: 1 if the answer in the text is correct (data.scoring says when it is), else 0. Or
    your own function as package.module:function. It is called with a problem (question, steps, answer) and the text of
    a completion, and returns a number."""
    num_generations: Annotated[int, Field(ge=2, strict=True)] = 8
    """Number of completions of each problem of a batch."""
    temperature: Annotated[float, Field(gt=0, strict=True)] = 1.0
    """Temperature of the tokens that are sampled; it divides the logits."""
    max_completion_length: Positive | None = None
    """Largest number of tokens of a completion; null: data.max_new_tokens, or 1 where answers are one token
    (data.format)."""
    exploration: Literal["none", "gaussian", "dropout", "svp"] = "gaussian"
    """Noise in the thoughts of a completion. none: completions differ only by the tokens that are sampled. gaussian: a
    normal number is added to each number that a thought feeds back. dropout: one mask for each completion sets some of
    the numbers that its thoughts feed back to 0, the same ones for all thoughts. svp: the singular values of each
    layer's value projection are multiplied with 1 + svp_scale · a normal number, one for each singular value and
    completion, held over prompt and thoughts; the answer is written without noise."""
    sigma: Annotated[float, Field(gt=0, strict=True)] = 0.6
    """Standard deviation of the noise (exploration=gaussian), in the units of hidden states."""
    dropout: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.2
    """Share of the numbers that are set to 0 (exploration=dropout); the others are divided by 1 - dropout."""
    svp_scale: Annotated[float, Field(gt=0, strict=True)] = 0.6
    """Relative standard deviation of the singular values (exploration=svp)."""
    svp_renew: Positive = 50
    """Number of iterations after which the singular vectors are computed from the weights again (exploration=svp)."""
    beta: Annotated[float, Field(ge=0, strict=True)] = 0.02
    """Factor of the KL divergence from the model that the run started from. 0: none, and the memory of that model's
    weights is saved."""
    epsilon: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.2
    """Tokens stop learning where the ratio of their probability now to that when they were sampled leaves 1 - epsilon
    to 1 + epsilon in the direction of their advantage. Can be set only with several updates for each sampling
    (num_iterations, steps_per_generation): with one, all ratios are 1."""
    epsilon_high: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Upper distance instead of epsilon; null: epsilon."""
    scale_rewards: Literal["none", "group", "batch"] = "none"
    """What divides the advantages. none: nothing. group: the standard deviation of the rewards of a problem's
    completions. batch: that of all completions of the batch."""
    loss_type: Literal["sum", "grpo", "bnpo", "dr_grpo"] = "sum"
    """How the losses of tokens are reduced. sum: sum over the tokens of a completion, mean over completions. grpo: mean
    over tokens, then over completions. bnpo: mean over all tokens. dr_grpo: sum divided by the largest number of
    tokens, then mean over completions."""
    num_iterations: Positive = 1
    """Number of times that the completions of a batch are used."""
    steps_per_generation: Positive = 1
    """Number of mini-batches, each with an update of its own, into which the completions of a batch are divided."""


NOISE_KEYS = {"gaussian": ("sigma",), "dropout": ("dropout",), "svp": ("svp_scale", "svp_renew")}
"""For each kind of ``objective.grpo.exploration``, the keys that only this kind reads."""

READERS = {
    "codi": ("codi", "sim_cot_codi"),
    "lotus": ("lotus",),
    "sim_cot": ("sim_cot", "sim_cot_codi"),
    "supervised_thoughts": ("supervised_thoughts",),
    "grpo": ("grpo",),
}
"""For each group of keys below ``objective``, the kinds of objectives that read it."""


class ObjectiveConfig(Group):
    """What is learned of the sequences that the method makes."""

    kind: Literal["likelihood", "codi", "lotus", "sim_cot", "sim_cot_codi", "supervised_thoughts", "grpo"] = (
        "likelihood"
    )
    """Name of an objective in coconut_ds/objectives."""
    feed: Literal["identity", "projection"] = "identity"
    """What a hidden state goes through before it is the next input embedding. identity: nothing. projection: two linear
    maps with a GELU between them, and a layer norm, all of which are learned (CODI)."""
    feed_width: Positive | None = None
    """Width between the two linear maps (feed=projection); null: the hidden size."""
    codi: CodiConfig = Field(default_factory=CodiConfig)
    """Self-distillation."""
    lotus: LotusConfig = Field(default_factory=LotusConfig)
    """Thoughts that predict steps."""
    sim_cot: SimCotConfig = Field(default_factory=SimCotConfig)
    """SIM-CoT's auxiliary decoder."""
    supervised_thoughts: SupervisedThoughtsConfig = Field(default_factory=SupervisedThoughtsConfig)
    """Thoughts that predict nodes."""
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    """Reinforcement learning."""

    def reads(self, group: str) -> bool:
        """Whether this kind reads a group of keys (a key of ``READERS``)."""
        return self.kind in READERS[group]

    @property
    def mixes_micro_batch(self) -> bool:
        """Whether the loss of a problem depends on the others of its micro batch."""
        return self.reads("codi") and self.codi.divide_by_std
