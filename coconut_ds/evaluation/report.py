"""Writes the results of an evaluation (predictions, scores, figure), reads them back, and prints a table of them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.errors import DataError
from coconut_ds.evaluation.job import PICTURE, SAMPLES_PICTURE, SWEEP, EvaluationJob
from coconut_ds.evaluation.model_card import add_to_model_card
from coconut_ds.evaluation.paired import PREDICTIONS, SCORES, VOTES
from coconut_ds.evaluation.picture import draw_sweep
from coconut_ds.evaluation.prediction import Evaluation, Prediction
from coconut_ds.evaluation.samples import sample_scores, votes_of
from coconut_ds.evaluation.samples_picture import draw_samples
from coconut_ds.evaluation.scores import BASELINES, hop_table, score_table, scores_of, sweep_point
from coconut_ds.files import shell_word, write_whole
from coconut_ds.results import ResultFolder
from coconut_ds.strict_json import parse_loosely

PNG_END = b"IEND\xaeB`\x82"
"""The last bytes of a complete PNG file."""


def write_results(
    job: EvaluationJob, results: ResultFolder, evaluations: Sequence[Evaluation], run: dict[str, Any], unknown: float
) -> None:
    """Writes predictions and scores, prints a table, then draws the figure. In a sweep each budget has a subfolder.

    Args:
        job: the evaluation.
        results: the folder of its results.
        evaluations: one for each thought budget.
        run: duration and speed of this launch, for ``scores.json``.
        unknown: share of the questions' tokens that the tokenizer does not know.

    Raises:
        DataError: a file cannot be written; the predictions are kept.
    """
    card, identity = job.reasoner.card, results.identity
    common: dict[str, Any] = {
        "checkpoint": job.reasoner.name,
        "method": card.method,
        "stage": card.stage,
        "split": job.split,
        "scoring": {"name": job.scoring.name, "source": job.scoring.source},
        "precision": job.reasoner.precision,
        "unknown_tokens": round(unknown, 6),
        "run": run | {"ranks": job.ranks.size, "batch_size": job.slots},
    }
    # The scores come first, because people read this file.
    made_from = {"settings": dict(job.settings), "signature": identity.signature, "identity": dict(identity.values)}
    scores = [
        common | scores_of(evaluation, job.problems) | _scores_of_samples(job, evaluation) | made_from
        for evaluation in evaluations
    ]
    try:
        with results.replacing() as out:
            _write(job, out, evaluations, scores)
        _print(job, results.path, scores)
        add_to_model_card(job, scores)
        # Drawn last: scores and predictions are stored and shown even if the picture fails.
        _draw(job, results.path, scores)
    except OSError as error:
        raise DataError(
            f"{results.path}: cannot be written ({error}); the predictions are kept, set out= to another folder"
        ) from error


def _scores_of_samples(job: EvaluationJob, evaluation: Evaluation) -> dict[str, Any]:
    """What ``scores.json`` says about the samples of each problem; nothing if there is one answer to each."""
    if job.samples is None:
        return {}
    found = sample_scores(evaluation.judged, job.scoring) if evaluation.judged else {"number": job.samples}
    return {"samples": _sampling_of(job) | found}


def _sampling_of(job: EvaluationJob) -> dict[str, Any]:
    """What makes the samples of a problem differ."""
    temperature = job.writing.sampling.temperature
    return job.writing.noise.shown | ({"temperature": temperature} if temperature else {})


def _write(job: EvaluationJob, out: Path, evaluations: Sequence[Evaluation], scores: Sequence[dict[str, Any]]) -> None:
    for name, evaluation, one in zip(job.names, evaluations, scores, strict=True):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(p.as_dict(), ensure_ascii=False) for p in evaluation.predictions]
        write_whole(folder / PREDICTIONS, "\n".join(lines) + "\n")
        if job.samples is not None:
            votes = [
                json.dumps(one.as_dict(), ensure_ascii=False) for one in votes_of(evaluation.predictions, job.scoring)
            ]
            write_whole(folder / VOTES, "\n".join(votes) + "\n")
        write_whole(folder / SCORES, json.dumps(one, indent=2) + "\n")
    if job.is_sweep:
        write_whole(out / SWEEP, json.dumps(scores, indent=2) + "\n")


def _draw(job: EvaluationJob, out: Path, scores: Sequence[dict[str, Any]]) -> None:
    if scores[0]["accuracy"] is not None:
        named = {BASELINES[key]: value for key, value in scores[0].get("baselines", {}).items()}
        title = f"{job.reasoner.name} on {len(job.problems):,} {job.split} problems"
        draw_sweep([sweep_point(one) for one in scores], out / PICTURE, title, named)
        for name, one in zip(job.names, scores, strict=True):
            if job.samples is not None:
                drawn = [f"{key}={value}" for key, value in _sampling_of(job).items()]
                draw_samples(one["samples"], out / name / SAMPLES_PICTURE, ", ".join([title, *drawn]))


def finished_evaluations(job: EvaluationJob, results: ResultFolder) -> list[Evaluation] | None:
    """The evaluations that an earlier launch with the same identity finished; None if there are none.

    Prints their table.

    Raises:
        DataError: a file of the results is missing or malformed.
    """
    if not results.is_finished:
        return None
    if faults := results.damage():
        raise DataError(f"{results.path}: its results are damaged: {'; '.join(faults[:3])}; {job.again}")
    found, scores = [], []
    for name in job.names:
        evaluation, one = _read(job, results.path / name)
        found.append(evaluation)
        scores.append(one)
    sys.stdout.write(f"evaluated before; these are the stored results ({job.again})\n")
    _print(job, results.path, scores)
    # A launch may have been killed before it did so.
    add_to_model_card(job, scores)
    if not all(map(_is_whole, _pictures(job, results.path))):
        _draw_again(job, results.path, scores)
    return found


def _pictures(job: EvaluationJob, out: Path) -> list[Path]:
    of_samples = [] if job.samples is None else [out / name / SAMPLES_PICTURE for name in job.names]
    return [out / PICTURE, *of_samples]


def _is_whole(picture: Path) -> bool:
    try:
        return picture.read_bytes().endswith(PNG_END)
    except OSError:
        return False


def _draw_again(job: EvaluationJob, out: Path, scores: Sequence[dict[str, Any]]) -> None:
    """Draws the figure that a launch lacks which was killed after it had written the scores."""
    try:
        _draw(job, out, scores)
    except Exception as error:
        # The stored results are complete without it. The errors of matplotlib have no common base.
        sys.stderr.write(f"warning: {out / PICTURE}: cannot be drawn ({type(error).__name__}: {error})\n")


def _read(job: EvaluationJob, folder: Path) -> tuple[Evaluation, dict[str, Any]]:
    """The predictions and the scores in a folder."""
    try:
        # Not splitlines(): it also splits at other characters, such as U+2028, which texts may contain.
        lines = (folder / PREDICTIONS).read_text(encoding="utf-8").split("\n")[:-1]
        predictions = [Prediction(**parse_loosely(line)) for line in lines]
        scores = parse_loosely((folder / SCORES).read_text(encoding="utf-8"))
        return Evaluation(predictions, scores["num_thoughts"], scores["num_pauses"]), scores
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its results are damaged ({error}); {job.again}") from error


def _print(job: EvaluationJob, out: Path, scores: Sequence[dict[str, Any]]) -> None:
    """Prints a table of scores, the speed of the launch that made them, and where the results are."""
    where = out / (SWEEP if job.is_sweep else SCORES)
    note, rest = "", scores[0]["problems"] - scores[0]["scored"]
    if scores[0]["accuracy"] is None:
        note = "no answers to compare with: the generated texts were saved but not scored\n"
    elif rest:
        note = f"problems without an answer to compare with, not scored: {rest:,} of {scores[0]['problems']:,}\n"
    if unknown := scores[0].get("unknown_tokens", 0):
        note += f"tokens of the questions in {job.source} that the tokenizer does not know: {unknown:.2%}\n"
    unusable = scores[0].get("unusable_graphs", 0)
    note += (
        f"graphs that cannot be used, so not categorised nor counted for shortcuts: {unusable:,}\n" if unusable else ""
    )
    tables = "".join(f"{table}\n" for table in (score_table(scores), hop_table(scores)) if table)
    sys.stdout.write(
        f"{job.reasoner.name}, method {job.reasoner.card.method}, {job.split} problems\n"
        f"{tables}{note}"
        f"{scores[0]['run']['problems_per_s']:.2f} predictions/s; {shell_word(where)}\n"
    )
