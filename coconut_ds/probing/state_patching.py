"""Layer × position patching between two problems: which state carries the answer?

Activation patching of single states (Meng et al. 2022, arXiv 2202.05262): the model runs on a question, with its state
at one layer and one position replaced by that of a *donor*, a problem with another text. The *effect* is how far this
moves the model from its own text to the donor's:

    effect = (d − d_own) / (d_donor − d_own),    d = log p(donor's text) − log p(own text)

where d_own and d_donor are measured without a change, on the question and on the donor. 0 means that nothing changes,
1 that the model behaves as on the donor. It may be outside of 0 to 1.

Thoughts after the replaced state are recomputed from it, or kept as they were (``later``). The positions are those from
the last one before the thoughts on; with ``positions="all"`` also those of the question, if both prompts are equally
long. The controls are:

* ``same answer``: the states of a problem that has the question's own text. What depends on the answer only has no
  effect.
* ``random``: the question's own state plus a random vector that is as long as the difference to the donor's state.

Legend: ``N`` blocks, ``P`` positions, ``L`` latents, ``D`` hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.baselines import Baseline, baselines_of
from coconut_ds.probing.cases import Plain
from coconut_ds.probing.intervene import SAME_ANSWER
from coconut_ds.probing.interventions import random_direction
from coconut_ds.probing.layer_passes import Replaced, raw_states, replaced_pass
from coconut_ds.probing.states import BATCH, embedded
from coconut_ds.probing.thought_attention import prompt_tokens
from coconut_ds.reasoner import Reasoner

MAX_REFERENCES = 64
"""Largest number of reference questions among which donors are looked for."""
Later = Literal["recomputed", "kept"]
Positions = Literal["thoughts", "all"]


@dataclass(frozen=True)
class PatchedState(Plain):
    """The result of replacing one state."""

    effect: float
    is_own: bool
    """Whether every token of the question's own text is still the likeliest."""
    is_donors: bool
    """Whether every token of the donor's text is the likeliest now."""


@dataclass(frozen=True)
class PatchedGrid(Plain):
    """The results of replacing each state by those of one source."""

    name: str
    """``patch``, or the name of a control."""
    source: str
    """The question whose states are used; empty for ``random``."""
    cells: tuple[tuple[PatchedState, ...], ...]
    """[N + 1][P]"""


@dataclass(frozen=True)
class StatePatching(Plain):
    """Layer × position patching between a question and a donor."""

    question: str
    donor: str
    text: str
    """The text that the model generates on the question."""
    donor_text: str
    later: Later
    positions: tuple[str, ...]
    """[P] the token, or the thought, at each position."""
    effect: PatchedGrid
    controls: tuple[PatchedGrid, ...]


@dataclass(frozen=True, eq=False)
class _Setting:
    """What all passes of one patching share."""

    reasoner: Reasoner
    own: Baseline
    donor: Baseline
    positions: tuple[int, ...]
    recomputed: bool


@in_parts
@torch.no_grad()
def patch_states(
    reasoner: Reasoner,
    question: str,
    donor: str | None = None,
    *,
    references: Sequence[str] = (),
    n_thoughts: int | None = None,
    later: Later = "recomputed",
    positions: Positions = "thoughts",
    seed: int = 0,
    max_new_tokens: int = 128,
) -> Parts[StatePatching]:
    """Replaces each state of a question by that of a donor, one at a time.

    It makes about (N + 1) · P · (L + 2) passes over the prompt, or with ``later="kept"`` 2 (N + 1) · P.

    Args:
        reasoner: the model.
        question: the question.
        donor: the question whose states are used; None: the first reference with another text.
        references: other questions, for the donor and for the control ``same answer``.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        later: whether thoughts after the replaced state are recomputed from it, or kept as they were.
        positions: ``thoughts``, or ``all`` to replace the states of the question's tokens too.
        seed: of the control ``random``.
        max_new_tokens: length limit of the generated texts, in tokens.

    Raises:
        DataError: there is no donor with another text, the prompts do not match, or all thoughts are computed at once,
            so that later ones cannot be recomputed.
        ModelError: the model's blocks are not found.
    """
    if reasoner.prompter.parallel is not None and later == "recomputed":
        raise DataError("later=recomputed: this model computes all thoughts at once; set later=kept")
    others = [one for one in dict.fromkeys([*([donor] if donor else []), *references]) if one != question]
    known = yield from baselines_of.parts(reasoner, [question, *others[:MAX_REFERENCES]], n_thoughts, max_new_tokens)
    own, pool = known[0], known[1:]
    chosen = _donor(own, pool, donor)
    setting = _Setting(reasoner, own, chosen, _positions(own, chosen, positions), later == "recomputed")
    own_states, donor_states = (raw_states(reasoner.loop, _prompt(reasoner, one)) for one in (own, chosen))
    span = yield from _span(setting)
    effect = yield from _grid(setting, span, "patch", chosen, donor_states)
    controls = yield from _controls(setting, span, pool, _random_states(setting, own_states, donor_states, seed))
    question, donor = own.case.question, chosen.case.question
    return StatePatching(question, donor, own.text, chosen.text, later, _names(setting), effect, controls)


def _donor(own: Baseline, pool: Sequence[Baseline], donor: str | None) -> Baseline:
    if donor is not None and donor == own.case.question:
        raise DataError("donor: is the question itself; give another question")
    candidates = pool[:1] if donor is not None else pool
    found = next((one for one in candidates if one.tokens != own.tokens), None)
    if found is None:
        raise DataError(
            f"donor: needs another question to which the model does not write {own.text!r} too; set donor, or give "
            "references with other answers"
        )
    if found.case.num_latents != own.case.num_latents:
        raise DataError(
            f"donor: the model has {found.case.num_latents} thoughts on it, but {own.case.num_latents} on the question"
        )
    return found


def _positions(own: Baseline, donor: Baseline, which: Positions) -> tuple[int, ...]:
    first, length = own.case.prompt.first_thought, len(own.case.prompt)
    if which == "all":
        if length != len(donor.case.prompt):
            raise DataError(
                f"positions=all: the prompts have {length} and {len(donor.case.prompt)} tokens; give a donor of the "
                "same length, or set positions=thoughts"
            )
        return tuple(range(length))
    return tuple(range(max(min(first, length) - 1, 0), length))


def _names(setting: _Setting) -> tuple[str, ...]:
    """[P] the token, or the thought, at each position."""
    names = prompt_tokens(setting.reasoner, setting.own.case)
    return tuple(names[at] for at in setting.positions)


def _matches(own: Baseline, other: Baseline, setting: _Setting) -> bool:
    """Whether the states of another question can be used at all positions."""
    fits = other.case.num_latents == own.case.num_latents
    return fits and (setting.positions[0] > 0 or len(other.case.prompt) == len(own.case.prompt))


def _prompt(reasoner: Reasoner, one: Baseline) -> Tensor:
    """[1, T, D] the input embeddings of a baseline's prompt."""
    return embedded(reasoner, [one.case], [one.fed])


def _random_states(setting: _Setting, own: Tensor, donor: Tensor, seed: int) -> Tensor:
    """[N + 1, T, D] the own states plus random vectors, at the places of the own prompt."""
    shift = len(setting.donor.case.prompt) - len(setting.own.case.prompt)
    found = own.clone()
    for layer in range(len(own)):
        for at in setting.positions:
            length = (donor[layer, at + shift] - own[layer, at]).norm()
            direction = random_direction(f"{seed}/{setting.own.case.question}/{layer}/{at}", own.shape[-1])
            found[layer, at] += direction * length
    return found


def _span(setting: _Setting) -> Parts[tuple[float, float]]:
    """d without a change: on the question, and on the donor."""
    found = []
    for one in (setting.own, setting.donor):
        scores = yield from _scores(setting, _prompt(setting.reasoner, one), [])
        found.append(scores[0][0])
    if abs(found[1] - found[0]) < 1e-4:
        raise DataError("donor: the model does not tell its text from that of the question; choose another donor")
    return found[0], found[1]


def _grid(
    setting: _Setting, span: tuple[float, float], name: str, source: Baseline | None, states: Tensor
) -> Parts[PatchedGrid]:
    """Replaces each state by that of ``states`` [N + 1, T, D], the states of ``source`` (None: of the own prompt)."""
    shift = 0 if source is None else len(source.case.prompt) - len(setting.own.case.prompt)
    places = [(layer, at) for layer in range(len(states)) for at in setting.positions]
    length = len(setting.own.case.prompt) + max(len(setting.own.tokens), len(setting.donor.tokens))
    most = setting.reasoner.pass_positions
    size = BATCH if most is None else max(1, min(BATCH, most // length))
    cells: list[PatchedState] = []
    for start in range(0, len(places), size):
        part = [Replaced(layer, at, states[layer, at + shift]) for layer, at in places[start : start + size]]
        embeds = _prompt(setting.reasoner, setting.own).repeat(len(part), 1, 1)
        if setting.recomputed:
            yield from _recompute(setting, embeds, part)
        for d, is_own, is_donors in (yield from _scores(setting, embeds, part)):
            cells.append(PatchedState((d - span[0]) / (span[1] - span[0]), is_own, is_donors))
    width = len(setting.positions)
    rows = tuple(tuple(cells[start : start + width]) for start in range(0, len(cells), width))
    return PatchedGrid(name, "" if source is None else source.case.question, rows)


def _controls(
    setting: _Setting, span: tuple[float, float], pool: Sequence[Baseline], random: Tensor
) -> Parts[tuple[PatchedGrid, ...]]:
    """``same answer``, if the pool has a question with the own text, and ``random``, whose states [N + 1, T, D] are
    given."""
    own, loop = setting.own, setting.reasoner.loop
    controls = []
    same = next((one for one in pool if one.text == own.text and _matches(own, one, setting)), None)
    if same is not None:
        found = raw_states(loop, _prompt(setting.reasoner, same))
        controls.append((yield from _grid(setting, span, SAME_ANSWER, same, found)))
    controls.append((yield from _grid(setting, span, "random", None, random)))
    return tuple(controls)


def _recompute(setting: _Setting, embeds: Tensor, part: Sequence[Replaced]) -> Parts[None]:
    """Writes into ``embeds`` [R, T, D] the thoughts after each row's replaced state, computed one after another."""
    case, loop = setting.own.case, setting.reasoner.loop
    first = case.prompt.first_thought
    for index in range(case.num_latents):
        # Vectors that the case gives are fed whatever the model computes: the embeddings of pauses.
        rows = [row for row, one in enumerate(part) if one.position < first + index]
        if index in case.given or not rows:
            continue
        states = replaced_pass(loop, embeds[rows, : first + index], [part[row] for row in rows])
        embeds[rows, first + index] = loop.fed(states[:, -1])
        yield None


def _scores(setting: _Setting, embeds: Tensor, part: Sequence[Replaced]) -> Parts[list[tuple[float, bool, bool]]]:
    """For each row of prompts ``embeds`` [R, T, D]: d, and whether the own or the donor's text is the likeliest."""
    own = _text_scores(setting, embeds, part, setting.own.tokens)
    yield None
    donor = _text_scores(setting, embeds, part, setting.donor.tokens)
    yield None
    return [(b - a, is_own, is_donors) for (a, is_own), (b, is_donors) in zip(own, donor, strict=True)]


def _text_scores(
    setting: _Setting, embeds: Tensor, part: Sequence[Replaced], tokens: Sequence[int]
) -> list[tuple[float, bool]]:
    """For each row, the log probability of a text, and whether each of its tokens is the likeliest."""
    loop, suppressed = setting.reasoner.loop, list(setting.reasoner.prompter.markers.all())
    ids = torch.tensor(list(tokens), device=loop.device)
    text = loop.embed(ids[None, :-1]).expand(len(embeds), -1, -1)
    states = replaced_pass(loop, torch.cat([embeds, text], dim=1), part)[:, embeds.shape[1] - 1 :]
    logits = loop.head(states).float()
    logits[..., suppressed] = float("-inf")
    chances = logits.log_softmax(dim=-1)
    each = ids.expand(len(embeds), -1).unsqueeze(-1)
    log_probabilities = chances.gather(2, each).sum(dim=(1, 2)).tolist()
    likeliest = (chances.argmax(dim=-1) == ids).all(dim=1).tolist()
    return list(zip(log_probabilities, likeliest, strict=True))
