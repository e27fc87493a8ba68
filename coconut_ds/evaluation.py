"""Accuracy of a model on problems: greedy generation, exact match, each problem counted once on any number of ranks."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.problem import Problem
from coconut_ds.distributed import ALONE, Ranks
from coconut_ds.formats import Format
from coconut_ds.generation import Generated, GenerationSettings, Thinking, check_prompts, generate
from coconut_ds.layout import Layout, expected_tokens, lay_out_prompt
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.scoring import extract_answer, is_correct
from coconut_ds.tokens import decode, encode_cue, encode_questions, tokenize

Call = Callable[..., Any]
"""A latent loop or an engine around one: ``call(task, *arguments)``."""


@dataclass(frozen=True)
class Prediction:
    """What the model made of one problem."""

    index: int
    question: str
    text: str
    """Generated text without markers."""
    extracted: str
    """The answer found in it."""
    answer: str
    correct: bool
    wholly_right: bool
    """The answer and every step that the stage still writes, token by token."""
    num_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Predictions of all problems, in order."""

    predictions: list[Prediction]
    num_thoughts: int
    num_pauses: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(p.correct for p in self.predictions) / len(self.predictions)

    @property
    def wholly_right(self) -> float:
        """Share of problems with right answer and steps."""
        return sum(p.wholly_right for p in self.predictions) / len(self.predictions)


@dataclass(frozen=True)
class Evaluator:
    """How to evaluate: what stays the same from one set of problems to the next."""

    tokenizer: PreTrainedTokenizerBase
    markers: MarkerIds
    method: Method
    spec: CurriculumSpec
    format: Format
    max_new_tokens: int
    batch_size: int
    context_length: int | None
    ranks: Ranks = ALONE

    def run(
        self,
        call: Call,
        problems: Sequence[Problem],
        stage: int,
        num_latents: int,
        progress: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Generates for each problem and compares.

        Args:
            call: latent loop or engine.
            problems: at least one.
            stage: tells which steps the model still writes.
            num_latents: thoughts or pauses of each problem.
            progress: show a bar on rank 0 (only on a terminal).
            check: called before each batch, on all ranks; may raise.
        """
        mine = range(self.ranks.rank, len(problems), self.ranks.size)
        prompts = self.prompts(problems, num_latents)
        gold = dict(zip(mine, tokenize(self.tokenizer, [problems[i] for i in mine], self.format), strict=True))
        predictions: list[Prediction] = []
        # Rank 0 has the most problems; the others repeat their last batch so that all make as many passes.
        starts = range(0, len(range(0, len(problems), self.ranks.size)), self.batch_size)
        for start in tqdm(starts, desc="evaluating", unit="batch", disable=None if progress else True, leave=False):
            check()
            chosen = mine[start : start + self.batch_size]
            made = self.generate(call, [prompts[index] for index in chosen] or prompts[:1], num_latents)
            for index, tokens in zip(chosen, made.tokens, strict=False):
                expected = expected_tokens(self.method, gold[index], stage, self.spec, self.markers)
                predictions.append(self._judge(index, problems[index], tokens, expected))
        gathered = [prediction for part in self.ranks.gather(predictions) for prediction in part]
        in_order = sorted(gathered, key=lambda prediction: prediction.index)
        pauses = num_latents if self.method.pauses else 0
        return Evaluation(in_order, num_latents - pauses, pauses)

    def prompts(self, problems: Sequence[Problem], num_latents: int) -> list[Layout]:
        """What the model is given for each problem; refuses those that do not fit its context."""
        questions = encode_questions(self.tokenizer, [problem.question for problem in problems], self.format)
        cue = encode_cue(self.tokenizer, self.format)
        prompts = [lay_out_prompt(self.method, ids, num_latents, self.markers, cue) for ids in questions]
        check_prompts(prompts, self.context_length)
        return prompts

    def generate(self, call: Call, prompts: Sequence[Layout], num_latents: int) -> Generated:
        """Greedy continuations of one batch of prompts."""
        starts = self.method.starts_thinking
        one_token = self.format.one_token and not self.method.writes_steps
        settings = GenerationSettings(
            1 if one_token else self.max_new_tokens,
            int(self.tokenizer.eos_token_id),
            tuple(marker for marker in self.markers.all() if not (starts and marker == self.markers.start)),
            self.context_length,
            Thinking(self.markers.start, self.markers.end, num_latents) if starts else None,
        )
        made: Generated = call(generate, prompts, settings, self.ranks.every)
        return made

    def _judge(self, index: int, problem: Problem, tokens: list[int], expected: list[int]) -> Prediction:
        text = decode(self.tokenizer, tokens, self.markers)
        return Prediction(
            index=index,
            question=problem.question,
            text=text,
            extracted=extract_answer(text, self.format),
            answer=problem.answer,
            correct=is_correct(text, problem.answer, self.format),
            wholly_right=tokens == expected,
            num_tokens=len(tokens),
        )


@dataclass(frozen=True)
class DecodedThought:
    """The tokens nearest to one thought through the language model head. A projection, not a meaning."""

    tokens: list[str]
    probabilities: list[float]


@torch.no_grad()
def decode_thoughts(
    loop: LatentLoop, tokenizer: PreTrainedTokenizerBase, thoughts: torch.Tensor, top_k: int = 5
) -> list[list[DecodedThought]]:
    """For thoughts [B, L, D] the top tokens of ``softmax(head(thought))`` (arXiv 2412.06769, figure 4)."""
    logits = loop.head(thoughts.to(loop.device, loop.model.dtype))
    values, ids = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return [
        [
            DecodedThought([str(tokenizer.decode([token])) for token in row_ids], row_values)
            for row_ids, row_values in zip(ids[row].tolist(), values[row].tolist(), strict=True)
        ]
        for row in range(len(thoughts))
    ]
