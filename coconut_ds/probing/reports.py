"""Runs one mode of ``coconut_ds.probe``: loads the checkpoint, computes, writes JSON, CSV and PNG, prints a summary.

The same command finds results that it finished before; other results are never replaced (see ``coconut_ds.results``).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import DataError
from coconut_ds.evaluation.identity import problems_identity, reasoner_identity, scoring_identity
from coconut_ds.files import shell_word, write_whole
from coconut_ds.model.precision import use_tf32
from coconut_ds.model.thought_noise import NoiseSettings
from coconut_ds.probing import figures, graph_reports, state_reports
from coconut_ds.probing.answers import AnswerAfter, answers_after
from coconut_ds.probing.cases import Sample
from coconut_ds.probing.export import row_of, write_csv, write_json
from coconut_ds.probing.inputs import graph_splits_of, problem_of, problems_of, question_of, splits_of
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.measures import MEASURED, measure_checkpoint, summary, write_measured
from coconut_ds.probing.parts import KeptParts
from coconut_ds.probing.trace import trace_thoughts
from coconut_ds.reasoner import Reasoner, load_reasoner
from coconut_ds.results import Identity, ResultFolder
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.identity import flattened
from coconut_ds.scoring import EXACT
from coconut_ds.settings import ProbeConfig

MAX_REFERENCES = 64
"""Largest number of reference problems for an intervention on a single question."""
SUMMARY = "summary.txt"
"""File with the printed summary. It is written last, so it marks a complete result."""
FILES = (
    *("trace.json", "states.csv", "thoughts.csv", "answers.csv", "thoughts.png", "layers.png"),
    *("intervention.json", "intervention.csv", "intervention.png"),
    *MEASURED,
    *state_reports.FILES,
    *graph_reports.FILES,
    SUMMARY,
)
"""The files of all modes."""
REPLACED = ("checkpoint", "data", "data_name", "model", "method", "pause", "tf32", "out", "overwrite")
"""Configuration keys that are left out of the identity: paths, replaced by hashes of the contents; tf32, which
is part of the precision in the reasoner's identity; and keys that change no number."""

NOISE_KEYS = ("thought_noise", "thought_sigma", "thought_dropout", "sample")
"""Keys that are left out too if there is no noise, so that results of versions without these keys are found."""


def write_report(config: ProbeConfig) -> Path:
    """Runs the configured mode and returns the folder of the results.

    Raises:
        DataError: the folder cannot be created, or the question or the data do not fit the mode.
    """
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    note = use_tf32("tf32=true", config.tf32, config.bf16, alone().device)
    if note is not None:
        sys.stderr.write(f"{note}\n")
    reasoner = load_reasoner(
        config.checkpoint,
        config.method,
        config.n_thoughts,
        model=config.model,
        dtype=dtype,
        chat_template=config.data is not None and config.data.chat_template,
    )
    results = _results(config, reasoner)
    results.refuse_other()
    out = results.path
    if results.is_finished:
        if faults := results.damage():
            raise DataError(f"{out}: its results are damaged: {'; '.join(faults[:3])}; overwrite=true computes again")
        text = (out / SUMMARY).read_text(encoding="utf-8")
        sys.stdout.write(f"computed before; this is the stored summary (overwrite=true computes again)\n{text}{out}\n")
        return out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"out={out}: cannot be created ({error.strerror}); set out= to another folder") from error
    parts = KeptParts(results)
    with results.replacing() as folder:
        text = MODES[config.mode](config, reasoner, folder, parts)
        write_whole(folder / SUMMARY, text)
    parts.discard()
    sys.stdout.write(f"{text}{shell_word(out)}\n")
    return out


def _results(config: ProbeConfig, reasoner: Reasoner) -> ResultFolder:
    """The folder of the results; its name contains the signature of everything that can change a number."""
    without = NOISE_KEYS if config.thought_noise == "none" else ()
    values = config.model_dump(mode="json", exclude={*REPLACED, *without})
    values |= reasoner_identity(reasoner)
    if config.data is not None:
        values |= problems_identity(problems_of(config, config.data)) | scoring_identity(config.data.convention)
        if config.mode == "effects":
            values |= problems_identity(splits_of(config, config.data)[0], "fit")
        if config.mode == "graph":
            values |= problems_identity(graph_splits_of(config, config.data)[0], "fit")
    if config.pause is not None:
        values |= reasoner_identity(load_reasoner(config.pause), "pause")
    settings = config.model_dump(mode="json", exclude={"out", "overwrite", "data_name"})
    identity = Identity(flattened({**values, "code": code_identity()}), flattened(settings))
    default = Path("outputs/probe") / reasoner.name / f"{config.mode}-{identity.signature}"
    return ResultFolder(Path(config.out or default), identity, FILES, config.overwrite)


def report_think(config: ProbeConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> str:
    """Mode ``think``: the trace of one question, and its answers after k thoughts. Returns a summary, as all modes."""
    question, known = question_of(config)
    noise = NoiseSettings.of(config.thought_noise, config.thought_sigma, config.thought_dropout)
    sample = None if noise.kind == "none" else Sample(noise, config.seed, config.sample)
    trace = trace_thoughts(
        reasoner,
        question,
        top_k=config.top_k,
        tokens=config.tokens,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        sample=sample,
    )[0]
    scoring = EXACT if config.data is None else config.data.convention
    (after,) = answers_after(
        reasoner, [question], [known], max_new_tokens=config.max_new_tokens, scoring=scoring, sample=sample
    )
    write_json(out / "trace.json", {"trace": trace, "answers": after})
    states = [*((str(one.number), layer, d) for one in trace.thoughts for layer, d in enumerate(one.layers))]
    states.append(("text", len(trace.thoughts[0].layers) - 1 if trace.thoughts else -1, trace.last))
    rows = []
    for name, layer, decoded in states:
        chosen = {f"log p {one.token}": one.log_probability for one in decoded.chosen}
        chosen |= {f"rank {one.token}": one.rank for one in decoded.chosen}
        pairs = enumerate(zip(decoded.tokens, decoded.probabilities, strict=True), start=1)
        top = {f"{what} {rank}": v for rank, pair in pairs for what, v in zip(("token", "p"), pair, strict=True)}
        rows.append({"state": name, "layer": layer, "entropy": decoded.entropy, **chosen, **top})
    write_csv(out / "states.csv", rows)
    write_csv(out / "thoughts.csv", [row_of(one, nearest=one.nearest[0].token) for one in trace.thoughts])
    write_csv(out / "answers.csv", [row_of(one) for one in after])
    figures.draw_thoughts(trace, out / "thoughts.png")
    figures.draw_layers(trace, out / "layers.png")
    lines = [f"{trace.question}  →  {trace.text!r}"]
    for one in trace.thoughts:
        shown = "  ".join(
            f"{t.strip() or '⏎'} {p:.2f}" for t, p in zip(one.decoded.tokens, one.decoded.probabilities, strict=True)
        )
        lines.append(f"thought {one.number}  norm {one.norm:.1f}  entropy {one.decoded.entropy:.2f}  {shown}")
    lines += [_answer_line(one) for one in after]
    return "\n".join(lines) + "\n"


def report_intervene(config: ProbeConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> str:
    """Mode ``intervene``: an intervention on one question, its effect and its controls."""
    question, _ = question_of(config)
    if config.kind not in list(Kind):
        raise DataError(f"kind={config.kind}: expected one of {', '.join(Kind)}")
    intervention = Intervention(
        Kind(config.kind),
        config.thought,
        config.strength,
        config.other,
        config.token,
        config.donor,
        config.draws,
        config.seed,
        config.later,
    )
    references = [] if config.data is None else [p.question for p in problems_of(config, config.data)[:MAX_REFERENCES]]
    pause = None if config.pause is None else load_reasoner(config.pause)
    made = intervene(
        reasoner, question, intervention, references=references, pause=pause, max_new_tokens=config.max_new_tokens
    )[0]
    write_json(out / "intervention.json", made)
    rows = [
        row_of(outcome, arm=arm.name, draw=draw, donor=arm.donors[draw] if arm.donors else "")
        for arm in (made.effect, *made.controls)
        for draw, outcome in enumerate(arm.outcomes)
    ]
    write_csv(out / "intervention.csv", rows)
    figures.draw_report(made, out / "intervention.png")
    lines = [f"{question}  →  {made.answer!r}", f"{intervention.name}, thought {intervention.thought}:"]
    for arm in (made.effect, *made.controls):
        answers = ", ".join(dict.fromkeys(one.answer for one in arm.outcomes))
        became = "" if arm.became_donors is None else f"  became the donor's {arm.became_donors:4.0%}"
        lines.append(
            f"  {arm.name:<28} unchanged {arm.kept:4.0%}{became}  log p {arm.mean_change:+7.2f}  answers {answers}"
        )
    return "\n".join(lines) + "\n"


def report_effects(config: ProbeConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> str:
    """Mode ``effects``: answers after k thoughts, linear probes and mean effects of interventions on a data set."""
    assert config.data is not None
    fit, scored = splits_of(config, config.data)
    made = measure_checkpoint(
        reasoner, fit, scored, config.draws, config.seed, config.max_new_tokens, config.data.convention, parts
    )
    write_measured(made, out, f"{reasoner.name}, {config.data_name}")
    return summary(made)


def report_attention(config: ProbeConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> str:
    """Mode ``attention``, see ``state_reports``."""
    problem = None if config.question is not None else problem_of(config)
    return state_reports.report_attention(reasoner, question_of(config)[0], problem, out)


def report_patch(config: ProbeConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> str:
    """Mode ``patch``, see ``state_reports``."""
    references = [] if config.data is None else [p.question for p in problems_of(config, config.data)[:MAX_REFERENCES]]
    return state_reports.report_patch(config, reasoner, question_of(config)[0], references, out)


MODES: dict[str, Callable[[ProbeConfig, Reasoner, Path, KeptParts], str]] = {
    "think": report_think,
    "intervene": report_intervene,
    "effects": report_effects,
    "attention": report_attention,
    "patch": report_patch,
    "graph": graph_reports.report_graph,
}


def _answer_line(one: AnswerAfter) -> str:
    mark = "" if one.is_right is None else "  right" if one.is_right else "  wrong"
    return (
        f"after {one.num_thoughts} thoughts: writes {one.text!r} (p {one.probability:.2f}){mark}; "
        f"forced answer: {one.forced!r} (p {one.forced_probability:.2f})"
    )
