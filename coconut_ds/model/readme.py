"""The model card of a checkpoint, ``README.md``: what the hub and its visitors read about a model.

Its front matter (YAML) has the method, the objective, the data and the scores for programs; the text says the same for
people, and how to load and serve the model. It is written with the checkpoint, from what the checkpoint itself holds,
so equal checkpoints have equal cards. An evaluation then adds its scores (``record_scores``): it replaces the part
between two comments and the scores of the front matter, and keeps everything else, which the user may edit. The
manifest of a checkpoint leaves the file out (``files.README``).
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub import ModelCard as HubCard

from coconut_ds.errors import CheckpointError
from coconut_ds.files import README
from coconut_ds.hub import first_line
from coconut_ds.model.card import ModelCard

BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
"""Around the scores in the text."""
NO_SCORES = "Not evaluated yet: `coconut-eval checkpoint=FOLDER data=FILE_OR_GROUP` adds its scores here."
TASK = "text-generation"


@dataclass(frozen=True)
class Origin:
    """What a model card says about the training of a model, beside what ``coconut.json`` has."""

    objective: str | None = None
    """Name of the training objective."""
    data: str | None = None
    """Name of the training data."""
    base_model: str | None = None
    """Name on the hub of the model that the training started from."""
    source: str | None = None
    """Where an imported model comes from."""


@dataclass(frozen=True)
class Score:
    """The accuracy of a model on a data set."""

    data: str
    """Name of the data."""
    split: str
    accuracy: float
    interval: tuple[float, float]
    """Its 95 % interval."""
    problems: int
    """Number of problems with an answer."""
    latents: int
    """Number of thoughts or pause tokens."""
    settings: Mapping[str, Any]
    """What else the accuracy depends on: the problems (their hash), how tokens are chosen, how answers are compared,
    and the precision."""

    def as_result(self) -> EvalResult:
        """The score as an entry of the front matter."""
        return EvalResult(
            task_type=TASK,
            task_name="Reasoning in continuous thoughts",
            dataset_type=self.data,
            dataset_name=self.data,
            dataset_split=self.split,
            metric_type="accuracy",
            metric_name=f"accuracy with {self.latents} latents",
            metric_value=self.accuracy,
            metric_args={
                "interval_95": list(self.interval),
                "problems": self.problems,
                "latents": self.latents,
                **self.settings,
            },
        )


def write_readme(folder: Path, card: ModelCard, origin: Origin | None = None) -> None:
    """Writes the model card of a checkpoint into its folder. The same arguments give the same bytes."""
    origin = origin or Origin()
    text = f"---\n{_front_matter(card, origin).to_yaml()}\n---\n\n{_body(card, origin)}"
    (folder / README).write_text(HubCard(text).content, encoding="utf-8")


def record_scores(folder: Path, card: ModelCard, scores: Sequence[Score]) -> None:
    """Adds scores to the model card of a checkpoint, which is written first if there is none.

    An entry for the same data, number of latents and settings is replaced. Several processes may do this at once.

    Raises:
        CheckpointError: the model card cannot be read as one, or cannot be written.
    """
    path = folder / README
    try:
        with _locked(folder):
            if not path.exists():
                write_readme(folder, card)
            shown = HubCard(path.read_text(encoding="utf-8"))
            data = shown.data
            assert isinstance(data, ModelCardData)
            results = {_key(one): one for one in (*(data.eval_results or ()), *(s.as_result() for s in scores))}
            data.eval_results = [results[key] for key in sorted(results)]
            data.model_name = data.model_name or _title(card)
            shown.text = _with_table(shown.text, [one for one in data.eval_results if _is_ours(one)])
            _replace(path, str(shown))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{path}: the scores could not be added to this model card ({first_line(error)}); restore it, or "
            "remove it to have a new one written"
        ) from error


def _replace(path: Path, text: str) -> None:
    """Replaces the model card atomically.

    The new one is written beside the checkpoint, as a file that launches of its run remove if it is left there: a
    server must never find it in the checkpoint.
    """
    temporary = path.parent.with_name(f".{path.parent.name}.part.readme.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine from changing the model card at the same time.

    Some network file systems cannot lock folders. There, the scores of one of two evaluations that end at the same
    moment may be missing, until its command is started again.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _front_matter(card: ModelCard, origin: Origin) -> ModelCardData:
    data = origin.data or card.provenance.get("data")
    return ModelCardData(
        base_model=origin.base_model,
        language="en",
        library_name="coconut-ds",
        pipeline_tag=TASK,
        tags=["coconut", "continuous-thought", "latent-reasoning", card.method],
        method=card.method,
        objective=origin.objective,
        training_data=data,
        n_thoughts=card.num_thoughts,
    )


def _title(card: ModelCard) -> str:
    return str(card.provenance.get("run") or card.provenance.get("imported_from") or card.method)


def _body(card: ModelCard, origin: Origin) -> str:
    latents = f"{card.num_latents} {'pause tokens' if card.num_pauses else 'thoughts'}"
    rows = {
        "method": f"`{card.method}`",
        "objective": None if origin.objective is None else f"`{origin.objective}`",
        "training data": origin.data or card.provenance.get("data"),
        "base model": origin.base_model,
        "imported from": origin.source,
        "at inference": latents,
        "stage": card.stage,
        "thoughts for each step": card.c_thought,
        "all thoughts at once": None if card.parallel is None else f"`{card.parallel.kind}`",
        "thoughts go through": None if card.feed is None else f"a {card.feed}",
        "text format": f"`{card.format}`",
        **{name: card.provenance.get(key) for name, key in PROVENANCE.items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    return BODY.format(title=_title(card), latents=latents, table=table, begin=BEGIN, scores=NO_SCORES, end=END)


PROVENANCE = {
    "epochs": "epoch",
    "optimizer updates": "global_step",
    "validation accuracy": "validation_accuracy",
    "seed": "seed",
    "run": "signature",
    "torch": "torch",
    "transformers": "transformers",
    "deepspeed": "deepspeed",
}
"""Lines of the table by what they show of ``ModelCard.provenance``."""
BODY = """# {title}

A language model that reasons in continuous thoughts (Coconut, [arXiv 2412.06769](https://arxiv.org/abs/2412.06769)):
hidden states that are fed back as input embeddings. It produces {latents} before it writes its answer.

| | |
|---|---|
{table}

## Scores

{begin}
{scores}
{end}

## How to use it

With the package coconut-ds. `FOLDER` is this folder, or a copy of it; its files say how the model thinks, so nothing
else has to be set.

```python
from coconut_ds import load_reasoner

print(load_reasoner("FOLDER").generate("QUESTION")[0].text)
```

```bash
python -m serve api --checkpoint FOLDER                        # OpenAI's protocol on 127.0.0.1:8000
coconut-eval checkpoint=FOLDER data=FILE_OR_GROUP              # accuracy with 95 % intervals
```

`coconut_ds.hf.CoconutForCausalLM.from_pretrained("FOLDER")` has the `generate` of transformers. Other programs load the
folder as a language model that does not think.
"""


def _key(result: EvalResult) -> tuple[str, ...]:
    """What tells the entries of a model card apart, in the order in which they are shown."""
    arguments = dict(result.metric_args or {})
    latents = str(arguments.pop("latents", "")).zfill(6)
    for value in ("interval_95", "problems"):
        arguments.pop(value, None)
    names = (result.dataset_name, result.dataset_type, str(result.dataset_split), result.metric_type)
    return *names, latents, *(f"{name}={value}" for name, value in sorted(arguments.items()))


def _is_ours(result: EvalResult) -> bool:
    return "interval_95" in (result.metric_args or {})


def _with_table(text: str, results: Sequence[EvalResult]) -> str:
    """The text with a table of scores between the comments; at the end if the user has removed them."""
    lines = [
        "| data | split | latents | accuracy | 95 % interval | problems | settings |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        arguments = dict(one.metric_args or {})
        low, high = arguments.pop("interval_95")
        latents, problems = arguments.pop("latents"), arguments.pop("problems")
        settings = ", ".join(f"{name} {value}" for name, value in arguments.items())
        interval = f"{low:.1%} – {high:.1%}"
        lines.append(
            f"| {one.dataset_name} | {one.dataset_split} | {latents} | {one.metric_value:.1%} | {interval} | "
            f"{problems:,} | {settings} |"
        )
    shown = "\n".join([BEGIN, *lines, END])
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return f"{text.rstrip()}\n\n## Scores\n\n{shown}\n"
    return f"{before}{shown}{after}"
