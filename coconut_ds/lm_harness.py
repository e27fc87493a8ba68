"""Runs lm-evaluation-harness on checkpoints of this project: ``coconut-lm-eval --model coconut --model_args path=…``.

The harness's own command cannot name models from other packages. This command registers the model ``coconut`` and then
calls the harness's command; all options are those of the harness. What a task calls the context is the question here:
it is followed by the thoughts, as in training, and then by the text that is generated or scored. Runs in one process.
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
"""The keys of a task's ``generation_kwargs`` that are supported."""


@register_model("coconut")
class CoconutLM(LM):
    """A checkpoint that thinks before it generates a text or scores a given one."""

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
            path: see ``load_reasoner``.
            method: the training method, if there is no ``coconut.json``.
            n_thoughts: number of thoughts; None: the number in the checkpoint's card.
            force_text_after: number of thoughts after which thinking ends early.
            dtype: float32 or bfloat16.
            device: where to compute; None: on the accelerator if there is one, else on the CPU.
            batch_size: largest number of requests that run at a time; ``auto``: ``max_batch_size``, or 32 without it.
            max_batch_size: see ``batch_size``.
            max_gen_toks: largest number of tokens to generate, for tasks that do not set it.
            seed: seed of the random draws, for tasks that sample.

        Raises:
            CheckpointError: see ``load_reasoner``.
            DataError: an argument is out of range or does not fit the method.
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
        """Names the tokenizer in the harness's cache of requests."""
        return self._reasoner.name

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that the model generates for each context, up to the first of the task's stop strings."""
        prompter, ours = self._reasoner.prompter, []
        for index, instance in enumerate(requests):
            context, options = instance.args
            writing = self._writing(options, index)
            ours.append(prompter.request(prompter.encode([context])[0], self._thoughts, writing))
        completions = self._run(ours, disable_tqdm)
        texts = [prompter.cut(each.tokens, request.stop) for each, request in zip(completions, ours, strict=True)]
        for instance, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", instance.args, text)
        return texts

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log probability of each continuation after context and thoughts, and whether greedy decoding gives it.

        Raises:
            DataError: the method lets the model decide when to think, which a given text leaves no room for.
        """
        prompter, ours = self._reasoner.prompter, []
        if prompter.method.starts_thinking:
            raise DataError(
                f"method={prompter.method.name} thinks once it writes a marker, which a text to be scored does not "
                "contain; choose a task with output_type: generate_until"
            )
        for instance in requests:
            context, continuation = instance.args
            prompt = prompter.prompt(prompter.encode([context])[0], self._thoughts)
            ours.append(self._scoring_request(prompt, self._tokens(continuation)))
        completions = self._run(ours, disable_tqdm)
        scores = [(sum(each.log_probabilities), all(each.is_greedy)) for each in completions]
        for instance, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", instance.args, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log probability of each whole text, without thoughts, since there is no question to think about."""
        prompter = self._reasoner.prompter
        windows: list[Request] = []
        owners: list[int] = []
        for index, instance in enumerate(requests):
            tokens = self._tokens(instance.args[0])
            longest = self._reasoner.context_length or len(tokens) + 1
            for before, scored in get_rolling_token_windows(tokens, prompter.eos_ids[0], longest - 1, 1):
                given = before[: len(before) - len(scored) + 1]
                prompt = Layout(given, [IGNORE] * len(given), len(given), 0)
                windows.append(self._scoring_request(prompt, scored))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, completion in zip(owners, self._run(windows, disable_tqdm), strict=True):
            totals[owner] += sum(completion.log_probabilities)
        for instance, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, total)
        return totals

    def _writing(self, options: dict[str, Any], index: int) -> Writing:
        """How to generate the text of request ``index``, from a task's ``generation_kwargs``."""
        unknown = [key for key in options if key not in GENERATION_KEYS]
        if unknown:
            raise DataError(f"generation_kwargs: found {', '.join(unknown)}; expected {', '.join(GENERATION_KEYS)}")
        until = options.get("until") or []
        # A task asks for greedy decoding by do_sample=false, or by leaving temperature out or setting it to 0.
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
    def _scoring_request(prompt: Layout, tokens: Sequence[int]) -> Request:
        return Request(prompt, max_new_tokens=1, continuation=tuple(tokens))

    def _run(self, requests: list[Request], disable_tqdm: bool) -> list[Completion]:
        prompter = self._reasoner.prompter
        with tqdm(total=len(requests), disable=disable_tqdm, desc="coconut") as bar:

            def done(index: int, completion: Completion) -> None:
                bar.update()

            return generate(self._reasoner.loop, requests, prompter.eos_ids, self._slots, prompter.text, done)


def main() -> int:
    """Runs the harness's command. Returns the exit code: 2 for an error that the user can correct."""
    try:
        cli_evaluate()
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
