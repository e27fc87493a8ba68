"""An experiment, built from its configuration: every part of a run except the engine, checked against each other.

Building it writes one thing: the tokens of a training file, to the cache in ``data.cache_path``.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.data.sequences import Sequences
from coconut_ds.data.sources import Source, Words, open_sources
from coconut_ds.data.tokens import encode_announcements
from coconut_ds.distributed.random_states import seed_generators
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import whole_shape
from coconut_ds.errors import ModelError
from coconut_ds.evaluation.evaluator import Call, Evaluator
from coconut_ds.evaluation.hop_scores import HopMeasure, HopScore
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, Method
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Collator
from coconut_ds.model.digest import digest_parameters
from coconut_ds.model.fused import Kernels, choose_kernels
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.model.starting import starting_backbone, starting_feed, wanted_feed
from coconut_ds.model.support import context_length
from coconut_ds.objectives import objective_of
from coconut_ds.objectives.base import Objective
from coconut_ds.runs.resume_state import Position
from coconut_ds.settings import Config
from coconut_ds.settings.data_schedule import phases_of
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.curriculum import Curriculum
from coconut_ds.training.data_schedule import DataSchedule
from coconut_ds.training.engine_file import engine_values, zero_stage
from coconut_ds.training.problems import Notify, RunProblems, check_lengths
from coconut_ds.training.rewards import Reward


@dataclass(frozen=True)
class Experiment:
    """What is trained, on which problems, and how."""

    config: Config
    ranks: Ranks
    geometry: BatchGeometry
    method: Method
    spec: CurriculumSpec
    curriculum: Curriculum
    backbone: Backbone
    weights: str | None
    """Hash of the initial weights, on rank 0; None if they are random, and on other ranks."""
    problems: RunProblems
    """The run's own problems; with ``data.schedule``, those of its last phase."""
    kernels: Kernels
    objective: Objective
    auxiliary: dict[str, nn.Module]
    """What the objective trains beside the model."""
    reward: Reward | None
    """The reward of completions; None for objectives that sample none."""
    earlier: tuple[RunProblems, ...] = ()
    """The problems of the entries of ``data.schedule``."""

    @classmethod
    def prepare(cls, config: Config, ranks: Ranks, notify: Notify) -> "Experiment":
        """Builds all parts. All ranks call it; random weights depend only on ``run.seed`` and the configuration.

        Args:
            config: of the experiment.
            ranks: all processes of the run.
            notify: receives lines for the log.

        Raises:
            CoconutError: configuration, data and model do not fit together, or one of them cannot be used.
        """
        training = config.training
        kernels = choose_kernels(config.model.fused_kernels, ranks.device)
        objective = objective_of(config)
        geometry = BatchGeometry.derive(training, ranks.size, objective.samples)
        reward = Reward(config) if objective.samples else None
        seed_generators(config.run.seed)
        sources = open_sources(config.data, config.run.seed, config.run.debug)
        values = engine_values(config, geometry, ranks.size) if zero_stage(config) == 3 else None
        backbone = starting_backbone(config, Words(sources), values)
        _check_kernels(config, kernels, backbone)
        # Random weights follow from seed and configuration, which are in the signature; loaded weights need a hash.
        loaded = config.run.load_model_path is not None or config.model.model_init == "pretrained"
        weights = digest_parameters(backbone.model, ranks, backbone.feed) if loaded else None
        method = METHODS[config.method.kind]
        auxiliary = _add_trained(config, backbone, method, objective)
        spec = training.curriculum_spec
        every = _open_problems(config, objective, sources, backbone, ranks, notify)
        *earlier, problems = every
        longest = max(method.num_stages(one, spec) for part in every for one in part.train(config.run.resume))
        curriculum = Curriculum.of(training, method, longest, config.run.resume, objective.samples)
        context = context_length(backbone.model)
        if context is not None:
            check = partial(check_lengths, objective.views(method), curriculum.last_stage, spec, context)
            for one in every:
                one.check(check)
        return cls(
            config,
            ranks,
            geometry,
            method,
            spec,
            curriculum,
            backbone,
            weights,
            problems,
            kernels,
            objective,
            auxiliary,
            reward,
            tuple(earlier),
        )

    @cached_property
    def data_schedule(self) -> DataSchedule:
        """Decides which problems each epoch trains on."""
        return DataSchedule(phases_of(self.config.data), self.config.run.resume)

    def problems_at(self, position: Position) -> RunProblems:
        """The problems of the current epoch."""
        phase = self.data_schedule.phase(position.epoch, position.data_switches)
        return (*self.earlier, self.problems)[phase]

    @property
    def pad_id(self) -> int:
        """Token that pads rows. No position that matters attends to it."""
        return int(self.backbone.tokenizer.eos_token_id)

    def loop(self) -> LatentLoop:
        """The model in a latent loop, as the engine trains it."""
        checkpointing = self.config.training.activation_checkpointing
        defers = False if zero_stage(self.config) == 3 else self.config.training.defer_gradients
        backbone = self.backbone
        loop = LatentLoop(backbone.model, checkpointing, defers, self.kernels, self.auxiliary, backbone.feed)
        return self.objective.equip(loop)

    @cached_property
    def sequences(self) -> Sequences:
        """Makes the sequences of the run's problems."""
        config, backbone = self.config, self.backbone
        announcements = encode_announcements(backbone.tokenizer, config.data.text_format)
        return Sequences(config.training, config.run.seed, self.method, self.spec, backbone.markers, announcements)

    @cached_property
    def collator(self) -> Collator:
        """Makes the tensors of micro batches."""
        context = context_length(self.backbone.model)
        return Collator.for_device(self.ranks.device, self.pad_id, self.config.parallel, context)

    def evaluator(self) -> Evaluator:
        """Generates and scores the answers to validation problems."""
        data = self.config.data
        prompter = Prompter(self.backbone, self.method, data.text_format, self.config.parallel)
        return Evaluator(
            prompter,
            self.spec,
            Writing(data.max_new_tokens),
            self.config.training.batch_size_eval,
            context_length(self.backbone.model),
            self.ranks,
            data.convention,
            same_passes=zero_stage(self.config) == 3,
        )

    def hop_scores(self, call: Call, problems: Sequence[Problem], stage: int) -> dict[int, HopScore]:
        """What the states that become thoughts say about validation problems at ``stage``, by hop. All ranks call it;
        empty if the run does not need it.

        Args:
            call: the engine, in evaluation mode.
            problems: the validation problems.
            stage: the stage, which determines the number of thoughts.
        """
        reader, training, data = self.problems.hop_reader, self.config.training, self.config.data
        if reader is None:
            return {}
        measure = HopMeasure(
            Prompter(self.backbone, self.method, data.text_format, self.config.parallel),
            reader,
            training.c_thought,
            training.batch_size_eval,
            context_length(self.backbone.model),
            self.config.objective.supervised_thoughts.thought_of_step,
            ranks=self.ranks,
        )
        return measure.scores(call, problems, Thoughts(self.method.num_latents(stage, None, self.spec)))

    def describe(self) -> str:
        """One line for the log."""
        parameters, trained = _sizes([self.backbone.model])
        beside, _ = _sizes(self.auxiliary.values())
        start = self.config.run.load_model_path
        loaded = "weights and tokenizer" if start and Path(start).is_dir() else "weights"
        return (
            f"{self.geometry.describe()}; {type(self.backbone.model).__name__}, {parameters / 1e6:.2f} M parameters"
            f"{f', {trained / 1e6:.2f} M trained' if trained < parameters else ''}"
            f"{f', {beside / 1e6:.2f} M more for {self.config.objective.kind}' if beside else ''}"
            f"{f' with {loaded} of {start}' if start else ''}, "
            f"{len(self.backbone.tokenizer)} tokens; {len(self.problems.train(self.config.run.resume)):,} training and "
            f"{len(self.problems.valid):,} validation problems"
            f"{f' after {len(self.earlier)} earlier phases of data.schedule' if self.earlier else ''}"
            + "".join(f"\n{note}" for note in self.backbone.notes_on(self.config.data.text_format))
        )


def _open_problems(
    config: Config, objective: Objective, sources: Sequence[Source], backbone: Backbone, ranks: Ranks, notify: Notify
) -> list[RunProblems]:
    """The problems of each phase of ``data.schedule``, and last the run's own."""
    # Another run may tokenize the same data for any time.
    excused = partial(ranks.progress.during, "waiting for a process that tokenizes the same data", excused=True)
    hops, needs_graphs = _hop_reader(config, objective, backbone), objective.thought_targets == "frontier"
    settings = [*(phase.data for phase in phases_of(config.data)), config.data]
    return [
        RunProblems(source, data, backbone.tokenizer, notify, excused, hops, needs_graphs)
        for source, data in zip(sources, settings, strict=True)
    ]


def _hop_reader(config: Config, objective: Objective, backbone: Backbone) -> HopReader | None:
    """What finds the hops of the problems; None if neither the objective nor the curriculum needs them."""
    if objective.thought_targets is None and config.training.advance_metric == "accuracy":
        return None
    return HopReader(backbone.tokenizer, config.data.text_format)


def _check_kernels(config: Config, kernels: Kernels, backbone: Backbone) -> None:
    """Refuses ``model.fused_kernels=on`` where no kernel fits the model."""
    if config.model.fused_kernels == "on" and not kernels.describe(backbone.model):
        raise ModelError(
            f"model.fused_kernels=on: there are none for {type(backbone.model).__name__} with these settings; "
            "that of attention needs sdpa without dropout of attention weights; set model.fused_kernels=auto or off"
        )


def _add_trained(config: Config, backbone: Backbone, method: Method, objective: Objective) -> dict[str, nn.Module]:
    """Adds the run's feed and adapters to the backbone. Returns what the objective trains beside the model.

    Under ZeRO-3 the ranks may have drawn different random numbers so far, but new weights must be equal on all ranks.
    """
    seed = config.run.seed
    backbone.feed = starting_feed(backbone, wanted_feed(config, backbone.model), method, seed)
    if config.model.lora.rank:
        seed_generators(seed)
        add_adapters(backbone.model, backbone.markers, config.model.lora)
    # Another seed than the model's: a decoder from scratch must not repeat the weights of a model from scratch.
    seed_generators(random.Random(f"auxiliary/{seed}").getrandbits(32))
    return objective.auxiliary(backbone)


def _sizes(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """Numbers of parameters: in total, and trained."""
    sizes = [(whole_shape(p).numel(), p.requires_grad) for module in modules for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
