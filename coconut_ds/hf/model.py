"""A model that thinks, as a module with ``from_pretrained``, ``forward`` and ``generate``.

Shapes:
    B  prompts
    N  ``num_return_sequences``
    T  positions of a batch
    L  thoughts
    D  hidden size
    V  vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from coconut_ds.errors import DataError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Thoughts, Writing
from coconut_ds.generation.requests import Completion, Request
from coconut_ds.hf.options import effective, writing_of
from coconut_ds.hub import local_folder
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.collate import collate
from coconut_ds.model.feed_file import FEED_FILE
from coconut_ds.reasoner import Reasoner, load_reasoner

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", str(FEED_FILE))
"""What is downloaded of a checkpoint on the hub."""


@dataclass
class CoconutOutput(ModelOutput):
    """What ``generate`` returns with ``return_dict_in_generate``."""

    sequences: Tensor | None = None
    """[B·N, T] the prompts as given, and the new tokens after them; thoughts are not among them."""
    num_thoughts: Tensor | None = None
    """[B·N] number of thoughts of each sequence."""
    thoughts: tuple[Tensor, ...] | None = None
    """[L, D] for each sequence: the states that were its thoughts, before any feed; None unless asked for."""


class CoconutForCausalLM(nn.Module):
    """A checkpoint of this project as other tools expect a model of transformers to be.

    The thoughts are not part of ``input_ids``: ``generate`` puts them between the prompt and what it writes.
    """

    main_input_name = "input_ids"

    def __init__(self, reasoner: Reasoner) -> None:
        """``reasoner``: the model that thinks; ``from_pretrained`` loads it."""
        super().__init__()
        self.reasoner = reasoner
        self.loop = reasoner.loop

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        n_thoughts: int | None = None,
        method: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        attn_implementation: str = "sdpa",
    ) -> "CoconutForCausalLM":
        """Loads a checkpoint: a folder, or a name on the hub, from where it is downloaded.

        Args:
            name: the folder or name.
            n_thoughts: number of thoughts; None: that of the checkpoint.
            method: the training method; needed for a folder without ``coconut.json``.
            dtype: type of the parameters, or its name such as ``bfloat16``.
            device: where to compute; None: on the accelerator if there is one, else on the CPU.
            attn_implementation: see ``load_reasoner``.

        Raises:
            CheckpointError: see ``load_reasoner``.
            ModelError: see ``load_reasoner``; or the checkpoint cannot be downloaded.
        """
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype):
            raise DataError(f"dtype={dtype}: expected a type of torch such as float32 or bfloat16")
        folder = local_folder(str(name), FILES, "name", "download it elsewhere, copy it here, and name its folder")
        reasoner = load_reasoner(
            folder, method, n_thoughts, dtype=kind, device=device, attn_implementation=attn_implementation
        )
        return cls(reasoner)

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the language model."""
        return self.loop.model.config

    @property
    def generation_config(self) -> GenerationConfig:
        """That of the language model. ``generate`` reads only its ends of text."""
        config = self.loop.model.generation_config
        return GenerationConfig() if config is None else config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, which knows the thought markers."""
        return self.reasoner.backbone.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.loop.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return self.loop.model.dtype

    @property
    def n_thoughts(self) -> int:
        """The number of thoughts that ``generate`` produces unless told otherwise."""
        return self.reasoner.card.num_latents

    def can_generate(self) -> bool:
        """True, as for every model of transformers that has ``generate``."""
        return True

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of token ids."""
        return self.loop.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.loop.model.get_output_embeddings()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a model folder that ``from_pretrained`` and ``load_reasoner`` read; see ``Reasoner.save``."""
        self.reasoner.save(folder)

    def prompts(self, questions: str | Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` [B, T] of questions, as in training, padded on the left."""
        given = [questions] if isinstance(questions, str) else list(questions)
        rows = self.reasoner.prompter.encode(given)
        width = max(map(len, rows), default=0)
        ids = torch.full((len(rows), width), self._pad_id(None))
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **ignored: Any
    ) -> CausalLMOutput:
        """Logits of whole sequences. Where they contain ``<|latent|>``, the model's own states are fed back.

        Args:
            input_ids: [B, T] token ids; those of the thoughts are consecutive.
            attention_mask: [B, T] 0 where a position is padding, whose logits are 0; None: nowhere.
            labels: [B, T] the tokens to predict, not shifted, ``-100`` elsewhere; None: no loss.
            ignored: what tools pass to every model, such as ``use_cache``.

        Returns:
            ``logits`` [B, T, V] in fp32, and with ``labels`` the mean cross entropy as ``loss``.
        """
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layouts = [self._layout(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, kept, strict=True)]
        longest = max(layout.num_thoughts for layout in layouts)
        parallel = self.reasoner.card.parallel
        inputs = collate(layouts, [1.0] * len(layouts), longest, self._pad_id(None), parallel=parallel)
        inputs = inputs.to(self.device)
        logits = self.loop.head(self.loop.encode(inputs.inputs))
        width, cuts = inputs.inputs.prefix_ids.shape[1], (inputs.inputs.prefix_last + 1).tolist()
        made = logits.new_zeros(*input_ids.shape, logits.shape[-1])
        for row, (cut, layout) in enumerate(zip(cuts, layouts, strict=True)):
            place = np.arange(len(layout))
            columns = torch.from_numpy(np.where(place < cut, place, place - cut + width)).to(logits.device)
            made[row, kept[row].bool().to(made.device)] = logits[row, columns]
        if labels is None:
            return CausalLMOutput(logits=made)
        wanted = labels[:, 1:].to(made.device).flatten()
        return CausalLMOutput(loss=F.cross_entropy(made[:, :-1].flatten(0, 1), wanted), logits=made)

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        n_thoughts: int | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        inputs: Tensor | None = None,
        force_text_after: int | None = None,
        min_thoughts: int | None = None,
        max_thoughts: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        output_thoughts: bool = False,
        **settings: Any,
    ) -> Tensor | CoconutOutput:
        """Thinks, then writes; greedily unless ``do_sample`` is set.

        Args:
            input_ids: [B, T] prompts as in training: a question with the text that follows it (``prompts``). A
                ``<|start-latent|>`` at the end is accepted too.
            attention_mask: [B, T] 0 where a position is padding, on either side; None: nowhere.
            n_thoughts: number of thoughts (or pause tokens); None: the number in the checkpoint's card.
            generation_config: settings that are not given as arguments.
            inputs: another name for ``input_ids``.
            force_text_after: see ``Reasoner.generate``, as for ``min_thoughts`` and ``max_thoughts``.
            seed: of the random draws; torch's generators are not used.
            batch_size: largest number of sequences that run at a time.
            output_thoughts: whether ``CoconutOutput`` has the thoughts.
            settings: ``max_new_tokens`` (128), ``max_length``, ``min_new_tokens``, ``do_sample``, ``temperature``,
                ``top_k`` (all), ``top_p``, ``num_return_sequences``, ``stop_strings``, ``pad_token_id`` and
                ``return_dict_in_generate``, as in transformers. Others are refused, unless they change nothing.

        Returns:
            [B·N, T] the prompts as given, and the new tokens, padded on the right; or ``CoconutOutput``.

        Raises:
            DataError: an argument is out of range or not supported, or a prompt does not fit into the context.
        """
        # With its signature longer than other functions, since it has transformers' arguments and ours.
        ids = inputs if input_ids is None else input_ids
        if ids is None or ids.ndim != 2:
            raise DataError("input_ids: expected a tensor of token ids [prompts, positions]")
        options = effective(generation_config, settings, self.reasoner.prompter.eos_ids)
        thoughts = self.reasoner.thoughts(n_thoughts, force_text_after, min_thoughts, max_thoughts)
        writing = writing_of(options, ids.shape[1], seed, output_thoughts)
        samples = int(options.get("num_return_sequences") or 1)
        kept = torch.ones_like(ids) if attention_mask is None else attention_mask
        made = self._completions(ids, kept, thoughts, writing, samples, batch_size)
        sequences = self._sequences(ids.repeat_interleave(samples, 0), made, self._pad_id(options.get("pad_token_id")))
        if not options.get("return_dict_in_generate"):
            return sequences
        states = tuple(one.thoughts for one in made if one.thoughts is not None) if output_thoughts else None
        return CoconutOutput(sequences, torch.tensor([one.num_thoughts for one in made]), states)

    def _completions(
        self, ids: Tensor, kept: Tensor, thoughts: Thoughts, writing: Writing, samples: int, batch_size: int
    ) -> list[Completion]:
        """What the engine makes of the prompts, ``samples`` of each one after the other."""
        requests: list[Request] = []
        for index, (row, mask) in enumerate(zip(ids, kept, strict=True)):
            # Random draws differ from prompt to prompt as in ``Reasoner.generate``.
            own = replace(writing, sampling=replace(writing.sampling, sample=index * samples))
            requests += self._request(row[mask.bool()].tolist(), thoughts, own).samples(samples)
        prompter = self.reasoner.prompter
        return list(generate(self.loop, requests, prompter.eos_ids, batch_size, prompter.text))

    def _request(self, prompt: list[int], thoughts: Thoughts, writing: Writing) -> Request:
        markers = self.reasoner.backbone.markers
        if prompt and prompt[-1] == markers.start:
            prompt = prompt[:-1]
        if found := sorted(set(prompt) & set(markers.all())):
            raise DataError(
                f"input_ids: a prompt contains the thought marker {self.tokenizer.convert_ids_to_tokens(found[0])}; "
                "generate adds the thoughts itself: leave markers out, and set n_thoughts"
            )
        return self.reasoner.prompter.request(prompt, thoughts, writing)

    def _sequences(self, prompts: Tensor, completions: Sequence[Completion], pad_id: int) -> Tensor:
        width = max((len(one.tokens) for one in completions), default=0)
        new = torch.full((len(completions), width), pad_id)
        for row, one in enumerate(completions):
            new[row, : len(one.tokens)] = torch.tensor(one.tokens)
        return torch.cat([prompts, new.to(prompts)], dim=1)

    def _layout(self, ids: list[int]) -> Layout:
        marker = self.reasoner.backbone.markers.thought
        count = ids.count(marker)
        first = ids.index(marker) if count else len(ids)
        if ids[first : first + count] != [marker] * count or (count and not first):
            raise DataError("input_ids: the thoughts of a sequence must be consecutive, after at least one token")
        return Layout(ids, [IGNORE] * len(ids), first, count)

    def _pad_id(self, given: Any) -> int:
        own = self.tokenizer.pad_token_id
        return int(given if given is not None else self.tokenizer.eos_token_id if own is None else own)
