"""Checkpoints that appear, change, break and vanish while a server offers them, and the right answers meanwhile.

Several *versions* of tiny models are made once, with the answers that ``load_reasoner`` gives without a server. The
*names* that a server offers have one version at a time, or none, or broken files.
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import save_checkpoint, thirteen_tokens

from coconut_ds import load_reasoner
from coconut_ds.files import put_in_place, remove_folder
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Writing
from coconut_ds.generation.requests import Sampling
from coconut_ds.reasoner import Reasoner

PROMPTS = ("the cat", "a b", "é€😀", "h e the cat", "1 + 2 =")
TOKENS = 12
LAG_S = 12.0
"""Seconds within which a server must have noticed a change and loaded the new files, also on a busy machine."""
BROKEN = "broken"
"""The state of a name whose files are damaged."""
VERSIONS = {
    "stable": {"seed": 1},
    "plain": {"seed": 2, "method": "no_cot", "tokenizer": thirteen_tokens},
    **{name: {"seed": 3 + place} for place, name in enumerate("abcde")},
}
"""The arguments of ``save_checkpoint`` by version."""
NAMES = {"stable": ["stable"], "plain": ["plain"], "changing": ["a", "b"], "coming": ["c"], "breaking": ["d", "e"]}
"""The versions that each name may have."""
ASKS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "thoughts": {"n_thoughts": 3},
    "sampled": {"temperature": 0.9, "seed": 7, "n": 2},
    "logprobs": {"logprobs": 2},
}
"""The fields of requests, besides model, prompt and length, by kind."""


@dataclass(frozen=True)
class Right:
    """The right answer to a request: texts, and log probabilities of the tokens of the first one."""

    texts: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    num_thoughts: int


class World:
    """The folder that a server offers, and what was in it when."""

    def __init__(self, folder: Path, seed: int = 0, prompts: Sequence[str] = PROMPTS) -> None:
        self.prompts = prompts
        self.root, self._sources = folder / "served", folder / "sources"
        self._random = random.Random(seed)
        self._history: dict[str, list[tuple[float, str | None]]] = {name: [] for name in NAMES}
        self.right: dict[tuple[str, str, str], Right] = {}
        """By version, kind of request and prompt."""
        self.root.mkdir()
        for version, arguments in VERSIONS.items():
            made = {name: value() if callable(value) else value for name, value in arguments.items()}
            source = save_checkpoint(self._sources / version, **made)
            self._answer(version, load_reasoner(source))
        for name, versions in NAMES.items():
            self._put(name, versions[0])

    def _answer(self, version: str, reasoner: Reasoner) -> None:
        prompter, cases, requests = reasoner.prompter, [], []
        for kind, fields in ASKS.items():
            thoughts = reasoner.thoughts(fields.get("n_thoughts") if reasoner.card.num_thoughts else None)
            sampling = Sampling(fields.get("temperature", 0.0), seed=fields.get("seed", 0))
            writing = Writing(TOKENS, sampling=sampling, log_probabilities=True, num_likeliest=2)
            for prompt in self.prompts:
                request = prompter.request(prompter.encode([prompt])[0], thoughts, writing)
                cases.append((kind, prompt, thoughts.count, fields.get("n", 1)))
                requests += request.samples(cases[-1][-1])
        made = iter(generate(reasoner.loop, requests, prompter.eos_ids, 8, prompter.text))
        for kind, prompt, num_thoughts, samples in cases:
            own = [next(made) for _ in range(samples)]
            texts = tuple(prompter.text(one.tokens) for one in own)
            self.right[version, kind, prompt] = Right(texts, tuple(own[0].log_probabilities), num_thoughts)

    def fields_of(self, name: str, kind: str) -> dict[str, Any]:
        """The fields of a request of this kind to this name."""
        fields = dict(ASKS[kind])
        if name == "plain":
            fields.pop("n_thoughts", None)
        return fields

    def allowed(self, name: str, began: float) -> set[str | None]:
        """The states that a name may have for a request that began then and has just ended.

        A server goes on with a model that it has loaded when its files break, so earlier versions are right, too, back
        to one that was there for so long that the server must have noticed it.
        """
        states = self._history[name]
        first = max((place for place, (since, _) in enumerate(states) if since <= began - LAG_S), default=0)
        found = {state for _, state in states[first:]}
        if BROKEN in found:
            for place in reversed(range(first)):
                since, state = states[place]
                found.add(state)
                if state != BROKEN and states[place + 1][0] - since >= LAG_S:
                    break
        return found

    def change(self, names: Sequence[str] = ("changing", "coming", "breaking")) -> str:
        """Changes one name at random; returns which. Blocks while files are copied."""
        name = self._random.choice(names)
        now = self._history[name][-1][1]
        if name == "coming":
            self._remove(name) if now is not None else self._put(name, "c")
        elif name == "breaking" and now != BROKEN:
            self._break(name)
        else:
            others = [version for version in NAMES[name] if version != now]
            self._put(name, self._random.choice(others))
        return name

    def _put(self, name: str, version: str) -> None:
        """Puts a version in place by a rename, as training does."""
        part = self.root / f".{name}.part"
        shutil.copytree(self._sources / version, part)
        self._note(name, version)
        put_in_place(part, self.root / name)

    def _remove(self, name: str) -> None:
        self._note(name, None)
        remove_folder(self.root / name)

    def _break(self, name: str) -> None:
        """Damages a file in place."""
        self._note(name, BROKEN)
        weights, card = self.root / name / "model.safetensors", self.root / name / "coconut.json"
        kind = self._random.choice(["cut", "flip", "card", "lost"])
        if kind == "cut":
            with weights.open("r+b") as file:
                file.truncate(weights.stat().st_size // 2)
        elif kind == "flip":
            with weights.open("r+b") as file:
                file.seek(weights.stat().st_size // 2)
                file.write(b"\xff\xff\xff\x7f")
        elif kind == "card":
            card.write_text(json.dumps({"num_thoughts": 60_000_000}), encoding="utf-8")
        else:
            (self.root / name / "tokenizer.json").unlink()

    def _note(self, name: str, state: str | None) -> None:
        """Notes a state that is about to begin."""
        self._history[name].append((time.monotonic(), state))
