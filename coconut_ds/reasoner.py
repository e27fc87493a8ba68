"""A checkpoint that answers questions: ``load_reasoner(path).generate(["…"], n_thoughts=4)``.

Method and number of thoughts are the checkpoint's (``coconut.json``), never read off the gold steps of a problem.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from coconut_ds.data.tokens import load_tokenizer
from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import CheckpointError
from coconut_ds.formats import extract_answer
from coconut_ds.generation.batch import generate
from coconut_ds.generation.decoding import DecodedThought, decode_thoughts
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing
from coconut_ds.generation.requests import Completion, Request, Sampling
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import load_folder, save_model
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.precision import cast, describe
from coconut_ds.model.reference_state import load_state_dict
from coconut_ds.model.support import context_length
from coconut_ds.settings import ModelConfig


@dataclass(frozen=True)
class Answer:
    """What a model wrote to a question."""

    question: str
    text: str
    """Without markers and end of sequence, up to a stop string."""
    answer: str
    """What scoring finds in it: after the last ``#``."""
    completion: Completion
    """Tokens, thoughts, and why it ended."""

    @property
    def thoughts(self) -> torch.Tensor | None:
        """[thoughts, D] the hidden states that were fed back; None unless ``keep_thoughts`` was asked for."""
        return self.completion.thoughts


@dataclass(frozen=True)
class Reasoner:
    """A model that knows how it thinks."""

    backbone: Backbone
    card: ModelCard
    name: str = "model"
    precision: str = "float32"
    """In what numbers it computes, in words."""

    @cached_property
    def loop(self) -> LatentLoop:
        """The latent loop around the model."""
        return LatentLoop(self.backbone.model).eval()

    @property
    def prompter(self) -> Prompter:
        """How questions become requests."""
        backbone, card = self.backbone, self.card
        return Prompter(backbone.tokenizer, backbone.markers, METHODS[card.method], card.text_format, card.iterations)

    @property
    def context_length(self) -> int | None:
        """Positions that the model knows; None where nothing limits them."""
        return context_length(self.backbone.model)

    def thoughts(
        self,
        n_thoughts: int | None = None,
        force_text_after: int | None = None,
        min_thoughts: int | None = None,
        max_thoughts: int | None = None,
    ) -> Thoughts:
        """How much to think: the checkpoint's number unless another is asked for (see ``Thoughts``)."""
        number = self.card.num_latents if n_thoughts is None else n_thoughts
        return Thoughts(number, force_text_after, min_thoughts, max_thoughts)

    def stage_at(self, thoughts: Thoughts) -> int:
        """The stage whose steps are still written after so many thoughts."""
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
        stop: Sequence[str] = (),
        keep_thoughts: bool = False,
        batch_size: int = 32,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Answer]:
        """Answers to questions, ``samples`` of each one after the other; greedy unless ``temperature`` is set.

        Args:
            questions: one or several.
            n_thoughts: thoughts (pauses, where the method pauses); None: the checkpoint's number.
            force_text_after: ends thinking early, after so many.
            min_thoughts: with it or ``max_thoughts`` the model may end thinking by itself, not before so many.
            max_thoughts: see ``min_thoughts``; the most there can be.
            max_new_tokens: longest text.
            temperature: 0 is greedy.
            top_k: only the k likeliest tokens.
            top_p: only the likeliest tokens that together hold this probability.
            seed: of the draws; question and sample get draws of their own.
            samples: continuations of each question.
            stop: texts that end a continuation; they are cut off.
            keep_thoughts: whether answers hold their thoughts.
            batch_size: requests at a time.
            on_done: told of each completion as it ends, with its place in the result.

        Raises:
            DataError: a question is longer than the context, or a number makes no sense.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        thoughts = self.thoughts(n_thoughts, force_text_after, min_thoughts, max_thoughts)
        prompter = self.prompter
        requests: list[Request] = []
        owners: list[str] = []
        for index, (question, ids) in enumerate(zip(asked, prompter.encode(asked), strict=True)):
            # Draws differ from question to question, as they do from sample to sample.
            sampling = Sampling(temperature, top_k, top_p, seed, sample=index * samples)
            writing = Writing(max_new_tokens, sampling=sampling, stop=tuple(stop), keep_thoughts=keep_thoughts)
            requests += prompter.request(ids, thoughts, writing).samples(samples)
            owners += [question] * samples
        made = generate(self.loop, requests, prompter.eos_ids, batch_size, prompter.text, on_done)
        return [self._answer(question, one, stop) for question, one in zip(owners, made, strict=True)]

    def decode_thoughts(self, answer: Answer, top_k: int = 5) -> list[DecodedThought]:
        """The tokens nearest to each thought of an answer that kept them."""
        if answer.thoughts is None:
            raise ValueError("the answer holds no thoughts; generate with keep_thoughts=True")
        if not len(answer.thoughts):
            return []
        return decode_thoughts(self.loop, self.backbone.tokenizer, answer.thoughts.unsqueeze(0), top_k)[0]

    def save(self, folder: str | Path) -> None:
        """Writes a folder that loads with no other argument, here and (its text part) with transformers alone.

        Raises:
            CheckpointError: it cannot be written.
        """
        model = self.backbone.model
        card = replace(self.card, marker_ids=marker_table(self.backbone.markers))
        save_model(Path(folder), model, model.state_dict(), self.backbone.tokenizer, card)

    def to(self, device: torch.device) -> "Reasoner":
        """The same, its model moved to a device."""
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
) -> Reasoner:
    """A checkpoint of this project, a plain Hugging Face model, or a state dict of the reference implementation.

    Args:
        path: a folder, or the file of a state dict.
        method: how it thinks; needed where there is no ``coconut.json``.
        n_thoughts: thoughts at inference; needed there too, if the method has any.
        model: architecture and tokenizer; needed for a state dict, not used otherwise.
        dtype: of the parameters; a CPU that is slow at it computes in fp32 with weights that are rounded to it.
        device: where to compute; None: the accelerator where there is one.
        attn_implementation: of passes outside the thinking engine.

    Raises:
        CheckpointError: it cannot be loaded, or does not say how it thinks.
    """
    place = Path(path)
    if method is not None and method not in METHODS:
        raise CheckpointError(f"method={method}: unknown; expected one of {', '.join(sorted(METHODS))}")
    card = card_at(place, method, n_thoughts)
    pause = METHODS[card.method].pauses
    if place.is_dir():
        backbone = load_folder(place, attn_implementation, pause=pause)
    elif model is None:
        raise CheckpointError(
            f"{place}: a state dict does not say its architecture; set model=gpt2_pretrained (or another of "
            "config/model), and tokenizer= where it is another one's"
        )
    else:
        backbone = load_state_dict(place, model, load_tokenizer(model.tokenizer or model.model_id), pause)
    computes_on = alone().device if device is None else torch.device(device)
    cast(backbone.model, dtype, computes_on)
    name = "-".join(place.resolve().parts[-2:])
    return Reasoner(backbone, card, name, describe(dtype, backbone.model)).to(computes_on)


def card_at(place: Path, method: str | None, n_thoughts: int | None) -> ModelCard:
    """How the checkpoint thinks: its card with the number of thoughts asked for, or a card made of what is given."""
    if not place.exists():
        raise CheckpointError(f"checkpoint={place}: no such folder; set checkpoint to a model folder")
    card = ModelCard.read(place) if place.is_dir() else None
    if card is not None:
        if method not in (None, card.method):
            raise CheckpointError(f"{place}: was trained with method={card.method}; leave method={method} out")
        return card if n_thoughts is None else card.with_latents(n_thoughts)
    if method is None:
        raise CheckpointError(
            f"{place}: has no coconut.json, so it does not say how it thinks; set method=cot, or another and n_thoughts"
        )
    if n_thoughts is None and METHODS[method].has_latents:
        raise CheckpointError(
            f"{place}: has no coconut.json, so it does not say how much it thinks; set n_thoughts too"
        )
    # Without a card the steps that are still written are not known: all where nothing stands for them, else none.
    card = ModelCard(
        method, stage=1 if n_thoughts else 0, num_thoughts=0, c_thought=0, max_latent_stage=0, marker_ids={}
    )
    return card.with_latents(n_thoughts or 0)
