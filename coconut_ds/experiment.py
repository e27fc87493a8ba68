"""An experiment, put together from its configuration: everything but the engine, checked, nothing written yet."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from coconut_ds.checkpoint import ModelCard, load_folder, load_state_dict
from coconut_ds.curriculum import Curriculum, mixed_stage, spec_of
from coconut_ds.data.batches import BatchGeometry, MicroBatch
from coconut_ds.data.sources import Source, open_source
from coconut_ds.distributed import Ranks
from coconut_ds.errors import CheckpointError
from coconut_ds.evaluation.evaluator import Evaluator
from coconut_ds.generation.prompter import Prompter, Writing
from coconut_ds.layout import Layout, lay_out
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, Method, TokenizedProblem
from coconut_ds.model.backbone import Backbone, build_backbone
from coconut_ds.model.collate import LatentInputs, Targets, collate
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.support import context_length
from coconut_ds.random_states import seed_generators
from coconut_ds.run_problems import Notify, RunProblems, check_lengths
from coconut_ds.settings import Config
from coconut_ds.tokens import build_word_tokenizer, load_tokenizer


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how."""

    config: Config
    ranks: Ranks
    geometry: BatchGeometry
    method: Method
    spec: CurriculumSpec
    curriculum: Curriculum
    backbone: Backbone
    problems: RunProblems

    @classmethod
    def prepare(cls, config: Config, ranks: Ranks, notify: Notify) -> "Experiment":
        """Builds all parts; random weights follow ``run.seed``. ``notify`` gets lines for the log.

        Raises:
            CoconutError: something of the configuration, the data or the model cannot be.
        """
        training = config.training
        geometry = BatchGeometry.derive(training, ranks.size)
        seed_generators(config.run.seed)
        source = open_source(config.data, config.run.seed, config.run.debug)
        backbone = starting_backbone(config, source)
        method = METHODS[config.method.kind]
        spec = spec_of(training)
        problems = RunProblems(source, config.data, backbone.tokenizer, notify)
        longest = max(method.num_stages(problem, spec) for problem in problems.train(config.run.resume))
        curriculum = Curriculum.of(training, method, longest, config.run.resume)
        context = context_length(backbone.model)
        if context is not None:
            problems.check(partial(check_lengths, method, curriculum.last_stage, spec, context))
        return cls(config, ranks, geometry, method, spec, curriculum, backbone, problems)

    @property
    def pad_id(self) -> int:
        """What fills rows; nothing that counts sees it."""
        return int(self.backbone.tokenizer.eos_token_id)

    def loop(self) -> LatentLoop:
        """The model, as it is to learn."""
        return LatentLoop(self.backbone.model, self.config.training.activation_checkpointing)

    def layout(self, problem: TokenizedProblem, stage: int) -> Layout:
        """The sequence of a problem at a stage."""
        return lay_out(self.method, problem, stage, self.spec, self.backbone.markers)

    def training_layout(self, epoch: int, stage: int, index: int, problem: TokenizedProblem) -> Layout:
        """The sequence of the epoch's problem ``index``, its stage mixed where the method has a curriculum."""
        if self.method.has_curriculum:
            training, seed = self.config.training, self.config.run.seed
            stages = self.method.num_stages(problem, self.spec)
            stage = mixed_stage(training, seed, epoch, index, stage, stages)
        return self.layout(problem, stage)

    def collate(self, batch: MicroBatch) -> tuple[LatentInputs, Targets]:
        """Tensors of a micro batch."""
        iterations = self.config.method.jacobi_iterations
        return collate(batch.layouts, batch.weights, batch.num_thoughts, self.pad_id, batch.num_targets, iterations)

    def evaluator(self) -> Evaluator:
        """How validation problems are answered."""
        data = self.config.data
        backbone, iterations = self.backbone, self.config.method.jacobi_iterations
        prompter = Prompter(backbone.tokenizer, backbone.markers, self.method, data.text_format, iterations)
        return Evaluator(
            prompter,
            self.spec,
            Writing(data.max_new_tokens),
            self.config.training.batch_size_eval,
            context_length(self.backbone.model),
            self.ranks,
        )

    def describe(self) -> str:
        """One line for the log. To be called before an engine has cut the parameters into shards."""
        parameters = sum(parameter.numel() for parameter in self.backbone.model.parameters())
        start = self.config.run.load_model_path
        took = "weights and tokenizer" if start and Path(start).is_dir() else "weights"
        return (
            f"{self.geometry.describe()}; {type(self.backbone.model).__name__}, {parameters / 1e6:.2f} M parameters"
            f"{f' with {took} of {start}' if start else ''}, "
            f"{len(self.backbone.tokenizer)} tokens; {len(self.problems.train(self.config.run.resume)):,} training and "
            f"{len(self.problems.valid):,} validation problems"
        )


def starting_backbone(config: Config, source: Source) -> Backbone:
    """Weights and tokenizer to start from: ``run.load_model_path`` where given, else what ``model`` describes."""
    path, pause = config.run.load_model_path, METHODS[config.method.kind].pauses
    if path is None:
        return build_backbone(config.model, _tokenizer(config, source), pause)
    place = Path(path)
    if place.is_dir():
        return load_folder(place, config.model.attn_implementation, pause=pause)
    if place.is_file():
        return load_state_dict(place, config.model, _tokenizer(config, source), pause)
    raise CheckpointError(
        f"run.load_model_path={path}: no such file or folder; set a checkpoint folder or a state dict"
    )


def card_of(config: Config) -> ModelCard | None:
    """The card of the checkpoint to start from, where it has one."""
    path = config.run.load_model_path
    return ModelCard.read(Path(path)) if path is not None and Path(path).is_dir() else None


def _tokenizer(config: Config, source: Source) -> PreTrainedTokenizerBase:
    name = config.model.tokenizer or config.model.model_id
    return build_word_tokenizer(source.vocabulary()) if name == "dataset" else load_tokenizer(name)
