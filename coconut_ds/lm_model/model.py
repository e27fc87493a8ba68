"""The model ``coconut`` of lm-evaluation-harness: a checkpoint of this project that answers the harness's requests.

What a task calls the context is the question here: it is followed by the thoughts, as in training, and then by the text
that is generated or scored. Importing this module registers the model. Runs in one process.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, simple_parse_args_string
from tqdm import tqdm

from coconut_ds.data.encoding import encode
from coconut_ds.errors import DataError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Completion, Request
from coconut_ds.lm_model.arguments import DTYPES, number, slots, stated, usable_device, writing_of
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.reasoner import load_reasoner

run_command = cli_evaluate
"""The harness's command, which reads ``sys.argv``."""


class Rendered(str):
    """A conversation that a chat template has rendered: a complete prompt, with special tokens in it."""


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
        batch_size: int | str | None = None,
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
                The harness passes the number 1 unless told otherwise, and text such as ``"1"`` from its command line.
                So the number 1 means the default, 32, like None.
            max_batch_size: see ``batch_size``.
            max_gen_toks: largest number of tokens to generate, for tasks that do not set it.
            seed: seed of the random draws, for tasks that sample.

        Raises:
            CheckpointError: see ``load_reasoner``.
            DataError: an argument is out of range or does not fit the method.
        """
        super().__init__()
        if not isinstance(path, str):
            raise DataError(
                f"path: found the {type(path).__name__} {path!r}, expected text; the harness reads such a path as a "
                """number or a word of its own, so write it in quotes: --model_args 'path="2024"'"""
            )
        if dtype not in DTYPES:
            raise DataError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
        count, forced = number("n_thoughts", n_thoughts), number("force_text_after", force_text_after)
        self._slots = slots(batch_size, number("max_batch_size", max_batch_size))
        self._max_gen_toks, self._seed = number("max_gen_toks", max_gen_toks) or 0, number("seed", seed) or 0
        self._device = usable_device(device)
        self._reasoner = load_reasoner(path, method, count, dtype=DTYPES[dtype], device=self._device)
        self._thoughts = self._reasoner.thoughts(count, forced)
        self._reasoner.prompter.check(self._thoughts)
        self.tokenizer = self._reasoner.backbone.tokenizer
        self._template_name: str | None = None

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "CoconutLM":
        """Creates the model from ``model_args`` such as ``path=FOLDER,n_thoughts=4``; see ``create_from_arg_obj``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "CoconutLM":
        """Creates the model from ``model_args``, which replace what the harness's own options say.

        Raises:
            DataError: an argument is unknown, or the path is missing.
        """
        known = [*inspect.signature(cls).parameters]
        unknown = [key for key in arg_dict if key not in known]
        if unknown or "path" not in arg_dict:
            found = ", ".join(unknown) or "no path"
            raise DataError(f"model_args: found {found}; expected path=FOLDER, and any of {', '.join(known[1:])}")
        return cls(**{**(additional_config or {}), **arg_dict})

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The number of requests that run at a time, for the harness's report."""
        return {"slots": self._slots}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Chooses the tokenizer's chat template; a name chooses one of several. Returns its source.

        Raises:
            DataError: the tokenizer has no chat template, or none of this name.
        """
        if not chat_template:
            return None
        self._template_name = chat_template if isinstance(chat_template, str) else None
        return self._template()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation with the tokenizer's chat template.

        The result is the prompt as it is: neither the newline that follows a question in training nor special tokens
        are added to it. The thoughts come after it.

        Raises:
            DataError: the tokenizer has no chat template, or it refuses this conversation.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                chat_history,
                chat_template=self._template(),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except TemplateError as error:
            roles = ", ".join(str(message.get("role")) for message in chat_history)
            raise DataError(
                f"--apply_chat_template: the tokenizer's chat template refuses messages of the roles {roles} "
                f"({error}); leave out --system_instruction or --fewshot_as_multiturn, or the chat template"
            ) from error
        return Rendered(text)

    def _template(self) -> str:
        templates, name = self.tokenizer.chat_template, self._template_name
        if isinstance(templates, dict):
            chosen = templates.get(name or "default")
            if chosen is None:
                raise DataError(
                    f"--apply_chat_template {name or ''}: the tokenizer has no chat template of this name; expected "
                    f"one of {', '.join(sorted(templates))}"
                )
            return str(chosen)
        if not templates:
            raise DataError(
                f"--apply_chat_template: the tokenizer of {self._reasoner.name} has no chat template; leave this "
                "option out"
            )
        if name is not None:
            raise DataError(
                f"--apply_chat_template {name}: the tokenizer has one chat template, without a name; leave the name out"
            )
        return str(templates)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self._reasoner.name

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that the model generates for each context, up to the first of the task's stop strings."""
        prompter, ours = self._reasoner.prompter, []
        for index, instance in enumerate(requests):
            context, options = instance.args
            writing = writing_of(normalize_gen_kwargs(stated(options), self._max_gen_toks), self._seed, index)
            ours.append(prompter.request(self._question(context), self._thoughts, writing))
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
            prompt = prompter.prompt(self._question(context), self._thoughts)
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

    def _question(self, context: str) -> list[int]:
        """The token ids of a task's context."""
        if isinstance(context, Rendered):
            # The template wrote special tokens into it by name.
            ids: list[int] = self.tokenizer.encode(context, add_special_tokens=False)
            return ids
        return self._reasoner.prompter.encode([context])[0]

    def _tokens(self, text: str) -> list[int]:
        """The token ids of a text of a task; names of special tokens in it are ordinary text."""
        return encode(self.tokenizer, [text])[0]

    @staticmethod
    def _scoring_request(prompt: Layout, tokens: Sequence[int]) -> Request:
        return Request(prompt, max_new_tokens=1, continuation=tuple(tokens))

    def _run(self, requests: list[Request], disable_tqdm: bool) -> list[Completion]:
        prompter = self._reasoner.prompter
        with tqdm(total=len(requests), disable=disable_tqdm, desc="coconut") as bar:

            def done(index: int, completion: Completion) -> None:
                bar.update()

            return generate(self._reasoner.loop, requests, prompter.eos_ids, self._slots, prompter.text, done)
