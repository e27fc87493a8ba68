"""Loads a checkpoint and answers questions with it: ``load_reasoner(path).generate(["…"], n_thoughts=4)``.

Method and number of thoughts come from the checkpoint's ``coconut.json``, never from a problem's reference solution.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from coconut_ds.data.encoding import unknown_note, unknown_share
from coconut_ds.data.tokens import load_tokenizer
from coconut_ds.distributed.launcher import launched_rank
from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import CheckpointError, DataError
from coconut_ds.formats import extract_answer
from coconut_ds.generation.answer import Answer
from coconut_ds.generation.batch import generate
from coconut_ds.generation.decoding import DecodedThought, decode_thoughts
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing
from coconut_ds.generation.requests import Completion, Request, Sampling
from coconut_ds.methods import METHODS
from coconut_ds.model.attention import check_attention
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import check_target, load_folder, save_model
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.precision import describe
from coconut_ds.model.readme import Origin
from coconut_ds.model.reference_state import check_state_file, load_state_dict
from coconut_ds.model.starting import card_at
from coconut_ds.model.support import context_length
from coconut_ds.model.thought_noise import NoiseSettings
from coconut_ds.model.trace_module import TraceModule
from coconut_ds.runs.naming import model_name
from coconut_ds.settings import ModelConfig, ThoughtNoiseKind

log = logging.getLogger("coconut_ds")
MOST_UNKNOWN = 0.01
"""Share of unknown tokens in questions above which a warning says so."""


@dataclass(frozen=True, repr=False)
class Reasoner:
    """A model together with its card, which says how it thinks."""

    backbone: Backbone
    """Model, tokenizer and markers."""
    card: ModelCard
    """Method and number of thoughts."""
    name: str = "model"
    """A name to show."""
    precision: str = "float32"
    """The floating point type that the model computes in, as text for the user."""
    pass_positions: int | None = None
    """Largest number of positions in one pass of probing, for servers, whose requests wait for it; None: no limit."""

    def __repr__(self) -> str:
        """One line. The fields include the model, whose own text has a line for each of its modules."""
        card, count = self.card, self.backbone.model.num_parameters()
        latents = f"{card.num_pauses} pauses" if METHODS[card.method].pauses else f"{card.num_thoughts} thoughts"
        place = f"{self.precision}, {self.backbone.model.device}"
        return f"Reasoner({self.name!r}: {card.method}, stage {card.stage}, {latents}, {count:,} parameters, {place})"

    @cached_property
    def loop(self) -> LatentLoop:
        """The latent loop around the model, in evaluation mode."""
        return LatentLoop(self.backbone.model, feed=self.backbone.feed).eval()

    @property
    def prompter(self) -> Prompter:
        """Turns questions into requests."""
        return Prompter(self.backbone, METHODS[self.card.method], self.card.text_format, self.card.parallel)

    @property
    def context_length(self) -> int | None:
        """The model's context length in positions; None if it is not limited."""
        return context_length(self.backbone.model)

    def thoughts(
        self,
        n_thoughts: int | None = None,
        force_text_after: int | None = None,
        min_thoughts: int | None = None,
        max_thoughts: int | None = None,
    ) -> Thoughts:
        """How many thoughts to produce; by default, the number in the checkpoint's card (see ``Thoughts``)."""
        number = self.card.num_latents if n_thoughts is None else n_thoughts
        return Thoughts(number, force_text_after, min_thoughts, max_thoughts)

    def stage_at(self, thoughts: Thoughts) -> int:
        """The curriculum stage whose remaining steps the model writes after this number of thoughts."""
        return self.card.with_latents(thoughts.count).stage

    def generate(
        self,
        questions: str | Sequence[str],
        n_thoughts: int | None = None,
        *,
        force_text_after: int | None = None,
        min_thoughts: int | None = None,
        max_thoughts: int | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        samples: int = 1,
        thought_noise: ThoughtNoiseKind = "none",
        thought_sigma: float | None = None,
        thought_dropout: float | None = None,
        stop: Sequence[str] = (),
        keep_thoughts: bool = False,
        batch_size: int = 32,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Answer]:
        """Answers questions, greedily unless ``temperature`` is set. The ``samples`` of a question are consecutive.

        Args:
            questions: one question or several.
            n_thoughts: number of thoughts (or pause tokens); None: the number in the checkpoint's card.
            force_text_after: number of thoughts after which thinking ends early.
            min_thoughts: with this or ``max_thoughts``, the model decides when to stop, not before this many thoughts.
            max_thoughts: largest number of thoughts, see ``min_thoughts``.
            max_new_tokens: largest number of tokens to generate.
            temperature: divides the logits; 0 is greedy decoding.
            top_k: sample only from the k most probable tokens.
            top_p: sample only from the most probable tokens whose probabilities sum to this value.
            seed: seed of the random draws, which differ for each question and sample.
            samples: number of answers to each question.
            thought_noise: none, gaussian or dropout, drawn by (seed, question, sample): equal for equal questions.
            thought_sigma: standard deviation of ``gaussian``, in the units of what is fed back.
            thought_dropout: share of the numbers that ``dropout`` sets to 0, the same ones in all thoughts.
            stop: strings that end a text; they are not part of it.
            keep_thoughts: whether to keep the hidden states of the thoughts (``Answer.thoughts``).
            batch_size: largest number of requests that run at a time.
            on_done: called with the index of an answer and its completion, as soon as that ends.

        Raises:
            DataError: a question does not fit into the context, or an argument is out of range.
        """
        thoughts = self.thoughts(n_thoughts, force_text_after, min_thoughts, max_thoughts)
        sampling = Sampling(temperature, top_k, top_p, seed)
        noise = NoiseSettings.of(thought_noise, thought_sigma, thought_dropout)
        writing = Writing(max_new_tokens, 0, sampling, tuple(stop), keep_thoughts, noise=noise)
        return self._generate(questions, thoughts, writing, samples, batch_size, on_done)

    def _generate(
        self,
        questions: str | Sequence[str],
        thoughts: Thoughts,
        writing: Writing,
        samples: int,
        batch_size: int,
        on_done: Callable[[int, Completion], None] | None,
    ) -> list[Answer]:
        questions = [questions] if isinstance(questions, str) else list(questions)
        prompter = self.prompter
        requests: list[Request] = []
        for index, ids in enumerate(prompter.encode(questions)):
            # Random draws differ from question to question, as they do from sample to sample.
            own = replace(writing, sampling=replace(writing.sampling, sample=index * samples))
            requests += prompter.request(ids, thoughts, own).samples(samples)
        completions = generate(self.loop, requests, prompter.eos_ids, batch_size, prompter.text, on_done)
        return [
            self._answer(questions[index // samples], completion, writing.stop)
            for index, completion in enumerate(completions)
        ]

    def decode_thoughts(self, answer: Answer, top_k: int = 5) -> list[DecodedThought]:
        """The ``top_k`` most probable tokens for each thought of an answer.

        Raises:
            ValueError: the answer was generated without ``keep_thoughts``.
        """
        if answer.thoughts is None:
            raise ValueError("the answer has no thoughts; generate it with keep_thoughts=True")
        if not len(answer.thoughts):
            return []
        return decode_thoughts(self.loop, self.backbone.tokenizer, answer.thoughts.unsqueeze(0), top_k)[0]

    def trace_module(self, n_thoughts: int | None = None) -> TraceModule:
        """The model with its thoughts as one module, in which every thought is a submodule (see ``TraceModule``).

        Args:
            n_thoughts: number of thoughts; None: the number in the checkpoint's card.

        Raises:
            DataError: the model pauses, computes all thoughts at once, or decides itself when to think.
        """
        prompter, thoughts = self.prompter, self.thoughts(n_thoughts)
        prompter.check(thoughts)
        if prompter.method.pauses or prompter.method.starts_thinking or prompter.parallel is not None:
            raise DataError(
                f"trace_module: {self.name} does not compute thoughts one after another after the question "
                f"(method={self.card.method}); it needs a checkpoint that does"
            )
        return TraceModule(
            self.loop, lambda question: prompter.prompt(prompter.encode([question])[0], thoughts), thoughts.count
        )

    def save(self, folder: str | Path, origin: Origin | None = None) -> None:
        """Writes a model folder that ``load_reasoner`` loads without further arguments.

        transformers loads it too, without thoughts. A model folder of that name is replaced. ``origin``: for README.md.

        Raises:
            CheckpointError: the folder cannot be written, or holds something else than a model folder.
        """
        model, place = self.backbone.model, Path(folder)
        check_target(place)
        card = replace(self.card, marker_ids=marker_table(self.backbone.markers))
        feed = None if self.backbone.feed is None else self.backbone.feed.state_dict()
        save_model(place, model, model.state_dict(), self.backbone.tokenizer, card, feed, origin)

    def log_notes(self) -> None:
        """Logs what the user should know about how this model treats text (``Backbone.notes_on``)."""
        if launched_rank() == 0:
            for note in self.backbone.notes_on(self.card.text_format):
                log.warning("%s: %s", self.name, note)

    def unknown_share(self, questions: Sequence[str], source: str) -> float:
        """Share of the questions' tokens that the tokenizer does not know. Logs a warning if it is above 1 %.

        Args:
            questions: the questions.
            source: the name of the file that they are from, for the warning.
        """
        share = unknown_share(self.backbone.tokenizer, self.prompter.encode(questions))
        if share > MOST_UNKNOWN and launched_rank() == 0:
            note = unknown_note(self.backbone.tokenizer, questions)
            log.warning(
                "%s: %.1f%% of the tokens of the questions of %s are unknown: %s",
                *(self.name, 100 * share, source, note),
            )
        return share

    def to(self, device: torch.device) -> "Reasoner":
        """Moves the model to a device; returns this object."""
        self.loop.to(device)
        return self

    def _answer(self, question: str, completion: Completion, stop: Sequence[str]) -> Answer:
        text = self.prompter.cut(completion.tokens, stop)
        return Answer(question, text, extract_answer(text, self.card.text_format), completion)


def load_reasoner(
    path: str | Path,
    method: str | None = None,
    n_thoughts: int | None = None,
    *,
    model: ModelConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    attn_implementation: str = "sdpa",
    chat_template: bool = False,
) -> Reasoner:
    """Loads a checkpoint of this project, a plain Hugging Face model, or a state dict of the reference implementation.

    Args:
        path: a model folder, or the file of a state dict.
        method: the training method; needed if there is no ``coconut.json``.
        n_thoughts: number of thoughts at inference; also needed without ``coconut.json``, if the method has thoughts.
        model: architecture and tokenizer; needed for a state dict, otherwise not used.
        dtype: type of the parameters. A CPU without bf16 instructions computes in fp32, with weights rounded to bf16.
        device: where to compute; None: on the accelerator if there is one, else on the CPU.
        attn_implementation: attention kernel of all passes outside of the thinking engine.
        chat_template: whether questions go through the tokenizer's chat template, if there is no ``coconut.json``;
            otherwise that says so, and False is ignored.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or the method or the number of thoughts is not known.
        ModelError: the attention kernel is not available, or the latent loop does not support the model.
    """
    place = Path(path)
    if method is not None and method not in METHODS:
        raise CheckpointError(f"method={method}: unknown; expected one of {', '.join(sorted(METHODS))}")
    check_attention(attn_implementation, dtype)
    if place.is_file():
        check_state_file(place)
    card = card_at(place, method, n_thoughts, chat_template)
    pause = METHODS[card.method].pauses
    if place.is_dir():
        backbone = load_folder(place, attn_implementation, pause=pause)
    elif model is None:
        raise CheckpointError(
            f"{place}: a state dict does not say its architecture; set model=gpt2_pretrained (or another option of "
            "config/model), and tokenizer= if the model was trained with another one"
        )
    else:
        backbone = load_state_dict(place, model, load_tokenizer(model.tokenizer or model.model_id), pause)
    computes_on = alone().device if device is None else torch.device(device)
    backbone.cast(dtype, computes_on)
    reasoner = Reasoner(backbone, card, model_name(place), describe(dtype, backbone.model, computes_on)).to(computes_on)
    reasoner.log_notes()
    return reasoner
