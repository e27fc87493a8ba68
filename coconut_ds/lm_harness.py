"""lm-evaluation-harness with checkpoints of this project: ``coconut-lm-eval --model coconut --model_args path=…``.

The harness has no way to name models of other packages, so this command puts the name there and hands over to its own;
every other option is the harness's. What a task calls the context is a question: the thoughts come after it, as in
training, and then the text that is written or scored. One process.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows
from tqdm import tqdm

from coconut_ds.errors import CoconutError, DataError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Writing
from coconut_ds.generation.requests import Completion, Request, Sampling
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.reasoner import load_reasoner

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GENERATION_KEYS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


@register_model("coconut")
class CoconutLM(LM):
    """A checkpoint that thinks before it writes, or before what it is to write is scored."""

    def __init__(
        self,
        path: str,
        method: str | None = None,
        n_thoughts: int | None = None,
        force_text_after: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 32,
        max_batch_size: int | None = None,
        max_gen_toks: int = 128,
        seed: int = 0,
    ) -> None:
        """
        Args:
            path: what ``load_reasoner`` takes.
            method: how it thinks, where there is no ``coconut.json``.
            n_thoughts: thoughts; None: the checkpoint's number.
            force_text_after: ends thinking early, after so many.
            dtype: float32 or bfloat16.
            device: where to compute; None: the accelerator where there is one.
            batch_size: requests at a time; ``auto`` is 32, or ``max_batch_size`` where that is given.
            max_batch_size: see ``batch_size``.
            max_gen_toks: longest text where a task says nothing.
            seed: of the draws, where a task samples.

        Raises:
            CheckpointError: see ``load_reasoner``.
            DataError: an argument makes no sense.
        """
        super().__init__()
        if dtype not in DTYPES:
            raise DataError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
        self._reasoner = load_reasoner(path, method, n_thoughts, dtype=DTYPES[dtype], device=device)
        self._thoughts = self._reasoner.thoughts(n_thoughts, force_text_after)
        self._reasoner.prompter.check(self._thoughts)
        auto = str(batch_size).startswith("auto")
        self._slots = int(max_batch_size or 32) if auto else int(batch_size)
        self._max_gen_toks, self._seed = max_gen_toks, seed

    @property
    def tokenizer_name(self) -> str:
        """For the harness's own cache of requests."""
        return self._reasoner.name

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text to each context, up to the first of the task's stop strings."""
        prompter, asked = self._reasoner.prompter, []
        for index, instance in enumerate(requests):
            context, options = instance.args
            writing = self._writing(options, index)
            asked.append(prompter.request(prompter.encode([context])[0], self._thoughts, writing))
        made = self._run(asked, disable_tqdm)
        texts = [prompter.cut(one.tokens, request.stop) for one, request in zip(made, asked, strict=True)]
        for instance, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", instance.args, text)
        return texts

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log probability of each continuation after context and thoughts, and whether it would be written.

        Raises:
            DataError: the model begins to think by itself, which a given text leaves it no place for.
        """
        prompter, asked = self._reasoner.prompter, []
        if prompter.method.starts_thinking:
            raise DataError(
                f"method={prompter.method.name} thinks once it writes a marker, which a text to be scored does not "
                "hold; choose a task with output_type: generate_until"
            )
        for instance in requests:
            context, continuation = instance.args
            prompt = prompter.prompt(prompter.encode([context])[0], self._thoughts)
            asked.append(self._scored(prompt, self._tokens(continuation)))
        made = self._run(asked, disable_tqdm)
        scores = [(sum(one.log_probabilities), all(one.is_greedy)) for one in made]
        for instance, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", instance.args, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of each whole text, as of a model that does not think: there is no question before it."""
        prompter = self._reasoner.prompter
        windows: list[Request] = []
        owners: list[int] = []
        for index, instance in enumerate(requests):
            tokens = self._tokens(instance.args[0])
            longest = self._reasoner.context_length or len(tokens) + 1
            for before, scored in get_rolling_token_windows(tokens, prompter.eos_ids[0], longest - 1, 1):
                given = before[: len(before) - len(scored) + 1]
                windows.append(self._scored(Layout(given, [IGNORE] * len(given), len(given), 0), scored))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, self._run(windows, disable_tqdm), strict=True):
            totals[owner] += sum(one.log_probabilities)
        for instance, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, total)
        return totals

    def _writing(self, options: dict[str, Any], index: int) -> Writing:
        unknown = [key for key in options if key not in GENERATION_KEYS]
        if unknown:
            raise DataError(f"generation_kwargs: found {', '.join(unknown)}; expected {', '.join(GENERATION_KEYS)}")
        until = options.get("until") or []
        # The harness calls a task greedy by either of two keys.
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample", True) else 0.0
        return Writing(
            int(options.get("max_gen_toks", self._max_gen_toks)),
            sampling=Sampling(temperature, options.get("top_k"), options.get("top_p", 1.0), self._seed, sample=index),
            stop=(until,) if isinstance(until, str) else tuple(text for text in until if text),
        )

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._reasoner.backbone.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @staticmethod
    def _scored(prompt: Layout, tokens: Sequence[int]) -> Request:
        return Request(prompt, max_new_tokens=1, continuation=tuple(tokens))

    def _run(self, asked: list[Request], disable_tqdm: bool) -> list[Completion]:
        prompter = self._reasoner.prompter
        with tqdm(total=len(asked), disable=disable_tqdm, desc="coconut") as bar:

            def done(index: int, completion: Completion) -> None:
                bar.update()

            return generate(self._reasoner.loop, asked, prompter.eos_ids, self._slots, prompter.text, done)


def main() -> int:
    """``lm_eval``, which knows ``coconut`` by now. Returns the exit code: 2 for an error to mend."""
    try:
        cli_evaluate()
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
