"""An experiment, put together from its configuration: everything but the engine, checked, nothing written yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from coconut_ds.checkpoint import ModelCard, load_folder, load_state_dict
from coconut_ds.curriculum import Curriculum, mixed_stage, spec_of
from coconut_ds.data.batches import BatchGeometry
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source, open_source
from coconut_ds.distributed import Ranks
from coconut_ds.errors import CheckpointError, ConfigError, DataError
from coconut_ds.evaluation import Evaluator
from coconut_ds.formats import Format
from coconut_ds.layout import Layout, lay_out, lay_out_prompt
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method, TokenizedProblem
from coconut_ds.model.backbone import Backbone, build_backbone
from coconut_ds.model.support import context_length
from coconut_ds.settings import Config
from coconut_ds.tokens import build_word_tokenizer, load_tokenizer, tokenize


class RunProblems:
    """The problems of a run as tokens. What does not change from epoch to epoch is tokenized and checked once."""

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase, format: Format) -> None:
        self._source = source
        self._tokenize = partial(tokenize, tokenizer, format=format)
        self.valid = source.valid()
        self.valid_tokens = self._tokenize(self.valid)
        self._epoch = -1
        self._texts: list[Problem] = []
        self._tokens: list[TokenizedProblem] = []
        self._limit: Callable[[str, Sequence[TokenizedProblem]], None] = lambda split, problems: None

    def limit(self, check: Callable[[str, Sequence[TokenizedProblem]], None]) -> None:
        """From now on each set of problems must pass ``check``, beginning with those that are there."""
        self._limit = check
        check("validation", self.valid_tokens)
        check("training", self._tokens)

    def train(self, epoch: int) -> list[TokenizedProblem]:
        """Training problems of an epoch."""
        if epoch == self._epoch:
            return self._tokens
        texts, self._epoch = self._source.train(epoch), epoch
        if texts != self._texts:
            self._texts, self._tokens = texts, self._tokenize(texts)
            self._limit("training", self._tokens)
        return self._tokens


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
    def prepare(cls, config: Config, ranks: Ranks) -> "Experiment":
        """Builds all parts; random weights follow ``run.seed``.

        Raises:
            CoconutError: something of the configuration, the data or the model cannot be.
        """
        training = config.training
        geometry = BatchGeometry.derive(training, ranks.size)
        check_start(config)
        torch.manual_seed(config.run.seed)
        source = open_source(config.data, config.run.seed, config.run.debug)
        backbone = starting_backbone(config, source)
        method = METHODS[config.method.kind]
        spec = spec_of(training)
        problems = RunProblems(source, backbone.tokenizer, config.data.text_format)
        longest = max(method.num_stages(problem, spec) for problem in problems.train(config.run.resume))
        curriculum = Curriculum.of(training, method, longest, config.run.resume)
        context = context_length(backbone.model)
        if context is not None:
            problems.limit(partial(check_lengths, method, curriculum.last_stage, spec, context))
        return cls(config, ranks, geometry, method, spec, curriculum, backbone, problems)

    @property
    def pad_id(self) -> int:
        """What fills rows; nothing that counts sees it."""
        return int(self.backbone.tokenizer.eos_token_id)

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

    def evaluator(self) -> Evaluator:
        """How validation problems are answered."""
        return Evaluator(
            self.backbone.tokenizer,
            self.backbone.markers,
            self.method,
            self.spec,
            self.config.data.text_format,
            self.config.data.max_new_tokens,
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


def check_start(config: Config) -> None:
    """Refuses, before anything is built, what only a continued attempt could mean."""
    if config.run.resume_mode == "force" or config.run.resume_attempt_id is not None:
        key = "resume_mode" if config.run.resume_mode == "force" else "resume_attempt_id"
        raise ConfigError(
            f"run.{key}={getattr(config.run, key)}: every launch starts a new attempt; "
            "set run.resume_mode=auto or never, and run.resume_attempt_id=null"
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


def check_lengths(
    method: Method,
    last_stage: int,
    spec: CurriculumSpec,
    context: int,
    split: str,
    problems: Sequence[TokenizedProblem],
) -> None:
    """Refuses problems that do not fit the model's context at some stage.

    Raises:
        DataError: names the first one.
    """
    most = method.num_latents(last_stage, None, spec)
    for index, problem in enumerate(problems):
        # A bound that most problems keep, before every stage is laid out.
        tokens = len(problem.question) + sum(map(len, problem.steps)) + len(problem.cue) + len(problem.answer)
        if tokens + most + 2 <= context:
            continue
        stages = range(max(last_stage, method.num_stages(problem, spec)) + 1)
        longest = max(_longest(method, problem, stage, spec) for stage in stages)
        if longest > context:
            raise DataError(
                f"{split} problem {index} has {longest} tokens with its thoughts or pauses; the model's context is "
                f"{context}; shorten it, use fewer thoughts, or set model.model_config_overrides (n_positions) for "
                "scratch models"
            )


def _longest(method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> int:
    """Positions that a problem takes in training or, with one token to write, at inference."""
    nowhere = MarkerIds(0, 0, 0, 0)
    # At inference the number of thoughts does not follow the gold steps.
    prompt = lay_out_prompt(method, problem.question, method.num_latents(stage, None, spec), nowhere, problem.cue)
    return max(len(lay_out(method, problem, stage, spec, nowhere)), len(prompt) + 1)
