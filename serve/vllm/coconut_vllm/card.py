"""A strict reader of ``coconut.json``, the card of a checkpoint: how the model thinks.

Whatever this reader does not know could change what the model computes, so it is an error, not ignored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_vllm.errors import NotSupported

CARD = "coconut.json"
START, END, THOUGHT, PAUSE = "<|start-latent|>", "<|end-latent|>", "<|latent|>", "<|pause|>"
MOST = 65_536
"""Largest number of thoughts or pause tokens that a card may name."""
NUMBERS = ("stage", "num_thoughts", "c_thought", "max_latent_stage", "num_pauses", "tokens_per_epoch")
REQUIRED = {"method", "stage", "num_thoughts", "c_thought", "max_latent_stage", "marker_ids"}
KNOWN = REQUIRED | {
    "num_pauses",
    "tokens_per_epoch",
    "format",
    "iterations",
    "provenance",
    "feed",
    "looped",
    "chat_template",
}
FEEDS = ("projection",)
FORMATS = ("text", "codi")
"""How questions are written; see ``prompts``."""


@dataclass(frozen=True)
class Method:
    """What a training method puts between question and text."""

    thinks: bool = False
    """Hidden states are fed back."""
    pauses: bool = False
    """There are pause tokens, whose embeddings are learned."""
    marked: bool = False
    """Markers surround the thoughts or pause tokens."""
    decides: bool = False
    """The model writes the marker that starts thinking; in other methods the prompt ends with it."""


METHODS = {
    "cot": Method(),
    "no_cot": Method(),
    "icot": Method(),
    "no_thoughts": Method(),
    "coconut": Method(thinks=True, marked=True),
    "coconut_no_curriculum": Method(thinks=True, marked=True),
    "coconut_reversed": Method(thinks=True, marked=True, decides=True),
    "pause_as_thought": Method(pauses=True, marked=True),
    "pause": Method(pauses=True),
}


@dataclass(frozen=True)
class Markers:
    """Token ids of the markers."""

    start: int
    end: int
    thought: int
    pause: int | None

    @property
    def all(self) -> tuple[int, ...]:
        """The ids, none of which a text may contain."""
        return tuple(one for one in (self.start, self.end, self.thought, self.pause) if one is not None)


@dataclass(frozen=True)
class Feed:
    """The module that a thought passes before it is fed back."""

    kind: str
    width: int
    """Size of its hidden layer."""


@dataclass(frozen=True)
class Card:
    """What the plugin needs to know of ``coconut.json``."""

    name: str
    """The name of the training method."""
    number: int
    """Number of thoughts or pause tokens, unless a request names another."""
    markers: Markers
    feed: Feed | None
    format: str = "text"
    """How questions are written, one of ``FORMATS``."""

    @property
    def method(self) -> Method:
        """The properties of the training method."""
        return METHODS[self.name]


def read_card(path: Path) -> Card:
    """Reads a card.

    Raises:
        NotSupported: it is not valid, or vLLM cannot make the thoughts that it describes.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise NotSupported(f"{path}: cannot be read ({error}); copy the checkpoint again") from error
    if not isinstance(values, dict):
        raise NotSupported(f"{path}: holds no JSON object; copy the checkpoint again")
    if unknown := sorted(set(values) - KNOWN):
        raise NotSupported(
            f"{path}: has fields that this plugin does not know: {', '.join(unknown)}. They may change how the "
            "model thinks; install a version of coconut-vllm that knows them, or serve it with python -m serve api"
        )
    if missing := sorted(REQUIRED - set(values)):
        raise NotSupported(f"{path}: lacks {', '.join(missing)}; copy the checkpoint again")
    for name in NUMBERS:
        most = MOST if name.startswith("num_") else 10**9
        if name in values and not (type(values[name]) is int and 0 <= values[name] <= most):
            raise NotSupported(f"{path}: {name} is {values[name]!r}; expected an integer from 0 to {most}")
    _refuse_other_thinking(path, values)
    method = METHODS[values["method"]]
    number = int(values.get("num_pauses", 0) if method.pauses else values["num_thoughts"])
    markers, feed = _markers(path, values["marker_ids"], method), _feed(path, values.get("feed"))
    return Card(values["method"], number, markers, feed, values.get("format", "text"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key occurs twice, since readers differ in which value they take."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(key for key, _ in pairs)}")
    return made


def _refuse_other_thinking(path: Path, values: dict[str, Any]) -> None:
    """Refuses methods, formats and ways to think that this plugin does not compute."""
    instead = "serve this checkpoint with python -m serve api"
    if not isinstance(values["method"], str) or values["method"] not in METHODS:
        raise NotSupported(f"{path}: unknown method {values['method']!r}; expected one of {', '.join(METHODS)}")
    if values.get("format", "text") not in FORMATS:
        raise NotSupported(
            f"{path}: format is {values['format']!r}; this plugin serves the formats {', '.join(FORMATS)}; {instead}"
        )
    if values.get("chat_template", False) is not False:
        raise NotSupported(
            f"{path}: chat_template is {values['chat_template']!r}: its questions go through the tokenizer's chat "
            f"template as in training, which this plugin does not do; {instead}"
        )
    if values.get("iterations") is not None:
        raise NotSupported(
            f"{path}: iterations is {values['iterations']!r}: the thoughts are computed together (thinking=jacobi or "
            f"looped), and vLLM computes one position after another; {instead}"
        )
    if values.get("looped", False) is not False:
        raise NotSupported(f"{path}: looped is {values['looped']!r} (thinking=looped), which vLLM cannot do; {instead}")


def _markers(path: Path, values: Any, method: Method) -> Markers:
    """The marker ids of a card, all different."""
    names = {START, END, THOUGHT, PAUSE}
    needed = {START, END, THOUGHT} | ({PAUSE} if method.pauses else set())
    if not isinstance(values, dict) or not needed <= set(values) <= names:
        raise NotSupported(f"{path}: marker_ids is {values!r}; expected the ids of {', '.join(sorted(needed))}")
    ids = [one for one in values.values() if one is not None]
    if any(type(one) is not int or one < 0 for one in ids) or len(set(ids)) < len(ids):
        raise NotSupported(f"{path}: marker_ids is {values!r}; expected different integers of 0 or more")
    if any(values[name] is None for name in needed):
        raise NotSupported(f"{path}: marker_ids has no id for some of {', '.join(sorted(needed))}")
    return Markers(values[START], values[END], values[THOUGHT], values.get(PAUSE))


def _feed(path: Path, values: Any) -> Feed | None:
    """The feed that a card names; None if thoughts are fed back as they are."""
    if values is None:
        return None
    if not isinstance(values, dict) or set(values) != {"kind", "width"}:
        raise NotSupported(f"{path}: feed is {values!r}; expected its kind and width")
    if values["kind"] not in FEEDS or type(values["width"]) is not int or values["width"] < 1:
        raise NotSupported(f"{path}: feed is {values!r}; expected one of {', '.join(FEEDS)} with a width of 1 or more")
    return Feed(values["kind"], values["width"])
