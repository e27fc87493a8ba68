"""Compares an implementation of the objectives with recorded numbers: losses, norms of gradients, greedy answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from recorded_cases import Case, trusted_cases
from recorded_objectives import Prompt, Recording
from torch import Tensor, nn

TOLERANCES = {"loss": 1e-4, "gradient norms": 1e-4, "greedy tokens": 0.0}
"""The largest relative difference of losses and of norms of gradients, and the largest number of tokens that differ.

The approximate GELU in CODI's projection changes norms of gradients by 2e-4 to 5e-4, and rounding by less than 1e-5."""
SMALL = 1e-6
"""Differences are relative to the recorded number, or to this if it is smaller."""


class Prepared(Protocol):
    """A case, ready to be computed."""

    parameters: Mapping[str, nn.Parameter]
    """The parameters that are trained, by the names in ``grad_norms``."""

    def parts(self) -> dict[str, Tensor]:
        """The differentiable parts of the loss by the names of ``Case.parts``, each with its factor, without total."""


class Implementation(Protocol):
    """What is checked."""

    def offers(self, case: Case) -> bool:
        """Whether it can compute a case; other cases are listed and left out."""

    def prepare(self, case: Case) -> Prepared:
        """Makes what a case needs, for example from ``case.modules()``."""

    def tokens(self, recording: Recording, prompt: Prompt) -> list[int]:
        """The greedy answer to a prompt; it may contain the end of sequence that ends it."""

    def readout(self, recording: Recording, prompt: Prompt) -> list[int]:
        """See ``Prompt.readout``; asked for only if it was recorded."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of a kind."""

    size: float = 0.0
    place: str = ""
    """The case and the number that differs."""


@dataclass
class Differences:
    """The largest difference of each kind."""

    worst: dict[str, Difference] = field(default_factory=lambda: {kind: Difference() for kind in TOLERANCES})
    left_out: list[str] = field(default_factory=list)
    """Names of the cases that the implementation does not offer."""

    def note(self, kind: str, size: float, place: str) -> None:
        """Keeps a difference if it is the largest of its kind. NaN counts as infinite."""
        size = float("inf") if size != size else size
        if size > self.worst[kind].size:
            self.worst[kind] = Difference(size, place)

    def add(self, other: "Differences") -> None:
        """Keeps the larger one of both for each kind."""
        for kind, difference in other.worst.items():
            self.note(kind, difference.size, difference.place)

    def excess(self) -> tuple[float, str]:
        """The largest difference as a multiple of what is tolerated, and a line that describes it."""
        factors = {kind: found.size / (TOLERANCES[kind] or SMALL) for kind, found in self.worst.items()}
        kind = max(factors, key=lambda kind: factors[kind])
        found = self.worst[kind]
        return factors[kind], f"{found.place}: {kind}: {found.size:.2e}, tolerated are {TOLERANCES[kind]:.0e}"


def compare(implementation: Implementation, cases: Iterable[Case], each_part: bool = True) -> Differences:
    """Computes cases and compares the parts of the loss, and the norms of gradients.

    Args:
        implementation: what is checked.
        cases: the cases.
        each_part: whether also the gradient of each part is compared, which takes a pass for each, or only that of the
            whole loss.
    """
    differences = Differences()
    for case in cases:
        place = f"{case.recording.name} {case.name}"
        prepared = implementation.prepare(case)
        norms = case.part_norms()
        wanted = case.parts()
        for part in wanted if each_part else ["total"]:
            parts = prepared.parts()
            assert parts.keys() == wanted.keys() - {"total"}, f"{place}: {sorted(parts)}"
            parts["total"] = sum(parts.values())
            for name, number in wanted.items():
                differences.note("loss", relative(parts[name].item(), number), f"{place}: {name}")
            found = _gradient_norms(parts[part], prepared.parameters)
            total = sum(norm**2 for norm in found.values()) ** 0.5
            differences.note("gradient norms", relative(total, norms[part]), f"{place}: {part}")
            if part == "total":
                # A parameter that gets no gradient is not in the recording.
                recorded = case.record["grad_norms"]
                for name in found.keys() | recorded.keys():
                    size = relative(found.get(name, 0.0), recorded.get(name, 0.0))
                    differences.note("gradient norms", size, f"{place}: {name}")
    return differences


def compare_answers(implementation: Implementation, recording: Recording) -> Differences:
    """Compares the greedy answers to all prompts of a recording."""
    differences = Differences()
    for number, prompt in enumerate(recording.prompts()):
        place = f"{recording.name} prompt {number}"
        made = _until(implementation.tokens(recording, prompt), recording.ids["eos"])
        differences.note("greedy tokens", differing(made, _until(prompt.wanted, recording.ids["eos"])), place)
        if prompt.readout:
            made = implementation.readout(recording, prompt)
            differences.note("greedy tokens", differing(made, prompt.readout), f"{place}: tokens of the thoughts")
    return differences


def compare_all(implementation: Implementation, recording: Recording) -> Differences:
    """Compares all trusted cases that the implementation offers, and all answers of a recording."""
    cases = list(trusted_cases(recording))
    differences = compare(implementation, filter(implementation.offers, cases))
    differences.add(compare_answers(implementation, recording))
    differences.left_out = [case.name for case in cases if not implementation.offers(case)]
    return differences


def relative(found: float, wanted: float) -> float:
    """The relative difference of two numbers."""
    return abs(found - wanted) / max(abs(wanted), SMALL)


def differing(made: list[int], wanted: list[int]) -> int:
    """The number of places at which two answers differ, those that only one of them has included."""
    return sum(a != b for a, b in zip(made, wanted, strict=False)) + abs(len(made) - len(wanted))


def _until(tokens: list[int], eos: int) -> list[int]:
    """The tokens before the first end of sequence.

    Some public implementations keep it in the answer, and some continue where the first token is one.
    """
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _gradient_norms(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The norm of the gradient of each parameter; 0 where there is none."""
    for parameter in parameters.values():
        parameter.grad = None
    if value.requires_grad:
        value.backward()
    grads = {name: parameter.grad for name, parameter in parameters.items()}
    return {name: 0.0 if grad is None else grad.norm().item() for name, grad in grads.items()}
