"""Statistics of problem files: lengths in tokens, steps, duplicates, answers, and the sequences used in training.

``make_report`` computes them; `text` and `picture` present them. Lengths are those of ``tokens.tokenize``, including
the newlines, the ``###`` and the end-of-sequence token that training adds. Two texts are equal if they are identical;
answers are compared as in scoring (``coconut_ds.formats``). The last stage is determined by the problems of the first
file only, as in training on that file.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, combinations, groupby, pairwise
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.checks import warnings_about
from coconut_ds.data.encoding import describe_added
from coconut_ds.data.problem import Problem
from coconut_ds.data.report.contents import PARTS, Example, FileStats, IntArray, Overlap, Report, Span
from coconut_ds.data.tokens import tokenize
from coconut_ds.formats import TEXT
from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, TokenizedProblem
from coconut_ds.methods.layout import IGNORE, lay_out

CHUNK = 8192
"""Number of problems tokenized together; afterwards, only lengths and counts are kept."""
NAMED = 2
"""Number of duplicates to list for each pair of files."""
MARKERS = MarkerIds(-1, -2, -3, -4)
"""Negative ids, which differ from those of all tokens."""
SIGNS = {"start": "<start>", "end": "<end>", "thought": "●", "pause": "○"}
"""How markers are displayed, in the order of ``MARKERS``."""

Files = Sequence[tuple[str, Sequence[Problem]]]
"""The names of files and their problems."""


class _Measured(NamedTuple):
    """Measurements of a file's tokens."""

    lengths: dict[str, IntArray]
    counts: IntArray
    """Number of occurrences of each token id in the file."""
    longest: int
    """The largest ``num_stages`` of any problem."""


def make_report(
    files: Files,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    c_thought: int = 1,
    max_latent_stage: int | None = None,
    num_examples: int = 3,
) -> Report:
    """Computes the report.

    Args:
        files: names and problems, in the order of the report.
        tokenizer: used, but not modified.
        method: a value of ``METHODS``.
        c_thought: number of thoughts that replace one step.
        max_latent_stage: the last stage that adds thoughts; None: the largest number of steps in the first file.
        num_examples: number of problems of the first file whose sequences are shown.
    """
    first = files[0][1]
    if max_latent_stage is None:
        max_latent_stage = max(len(problem.steps) for problem in first)
    spec = CurriculumSpec(c_thought, max_latent_stage)
    with tqdm(total=sum(len(p) for _, p in files), unit=" problems", unit_scale=True, disable=None, leave=False) as bar:
        measured = [_measure(problems, tokenizer, method, spec, bar) for _, problems in files]
    last_stage = method.final_stage(measured[0].longest, spec) if method.has_curriculum else 0
    stats = []
    for (name, problems), own in zip(files, measured, strict=True):
        longest = tokenize(tokenizer, [problems[int(own.lengths["whole"].argmax())]])[0]
        begin, end = (len(lay_out(method, longest, stage, spec, MARKERS)) for stage in (0, last_stage))
        unknown = _count_unknown(own.counts, len(problems), tokenizer)
        new = int(own.counts[measured[0].counts == 0].sum())
        stats.append(_file_stats(name, problems, own.lengths, (unknown, new), (begin, end)))
    examples = []
    for index in choose_examples(stats[0], num_examples):
        problem = tokenize(tokenizer, [first[index]])[0]
        stages = tuple(lay_out_pieces(method, problem, k, spec, tokenizer) for k in range(last_stage + 1))
        examples.append(Example(index, len(problem.steps), int(stats[0].lengths["whole"][index]), stages))
    overlaps = find_overlaps(files)
    notes = tuple(describe_added(tokenizer))
    return Report(tuple(stats), overlaps, len(tokenizer), method.name, spec, last_stage, tuple(examples), notes)


def summarize(values: IntArray) -> tuple[float, float, float, float, float]:
    """Minimum, median, mean, 95th percentile, maximum."""
    median, high = np.percentile(values, [50, 95])
    return float(values.min()), float(median), float(values.mean()), float(high), float(values.max())


def find_overlaps(files: Files) -> tuple[Overlap, ...]:
    """The overlap of each file with each earlier file."""
    # Iterate from the end, so that of several problems with the same question the index of the first remains.
    places = [{problems[i].question: i for i in reversed(range(len(problems)))} for _, problems in files]
    wholes = [set(problems) for _, problems in files]
    overlaps = []
    for a, b in combinations(range(len(files)), 2):
        earlier, (name, problems) = places[a], files[b]
        found = [index for index, problem in enumerate(problems) if problem.question in earlier]
        named = tuple((i, earlier[problems[i].question], problems[i].question) for i in found[:NAMED])
        both = sum(problem in wholes[a] for problem in problems)
        overlaps.append(Overlap(files[a][0], name, len(problems), len(found), both, named))
    return tuple(overlaps)


def choose_examples(stats: FileStats, count: int) -> list[int]:
    """Indices of ``count`` problems, spread evenly from few steps and tokens to many; for one problem, the middle."""
    order = np.lexsort((stats.lengths["whole"], stats.num_steps))
    last = len(order) - 1
    places = [last // 2] if count == 1 else np.linspace(0, last, min(count, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def lay_out_pieces(
    method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[Span, ...]:
    """The training sequence of a problem at a stage, divided into spans."""
    parts: list[tuple[str, int, Ids]] = [("question", 0, problem.question)]
    parts += [("step", number, step) for number, step in enumerate(problem.steps, start=1)]
    parts += [("answer", 0, problem.answer)]
    origins = [(role, number, token) for role, number, ids in parts for token in ids]
    # Lay out the indices of the tokens instead of the tokens: they show where each token came from, for any method.
    places = [range(a, b) for a, b in pairwise(accumulate((len(ids) for _, _, ids in parts), initial=0))]
    shadow = TokenizedProblem(places[0], tuple(places[1:-1]), places[-1])
    layout = lay_out(method, shadow, stage, spec, MARKERS)
    markers = {marker: (role, 0, marker) for marker, role in zip(MARKERS.all(), SIGNS, strict=True)}
    cells = [
        (*(markers[place] if place in markers else origins[place]), label != IGNORE)
        for place, label in zip(layout.input_ids, layout.labels, strict=True)
    ]
    pieces = []
    for (role, number, loss), run in groupby(cells, key=lambda cell: (cell[0], cell[1], cell[3])):
        ids = [token for _, _, token, _ in run]
        text = SIGNS[role] * len(ids) if role in SIGNS else _decode(tokenizer, ids)
        pieces.append(Span(role, number, text, len(ids), loss))
    return tuple(pieces)


def _measure(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, method: Method, spec: CurriculumSpec, bar: tqdm
) -> _Measured:
    rows, longest = [], 0
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    for start in range(0, len(problems), CHUNK):
        some = tokenize(tokenizer, problems[start : start + CHUNK])
        for each in some:
            lengths = (len(each.question), sum(map(len, each.steps)), len(each.answer))
            rows.append((*lengths, sum(lengths)))
            longest = max(longest, method.num_stages(each, spec))
        pieces = chain.from_iterable((each.question, *each.steps, each.answer) for each in some)
        counts += np.bincount(np.fromiter(chain.from_iterable(pieces), np.int64), minlength=len(counts))
        bar.update(len(some))
    return _Measured(dict(zip(PARTS, np.array(rows, np.int64).T, strict=True)), counts, longest)


def _file_stats(
    name: str,
    problems: Sequence[Problem],
    lengths: Mapping[str, IntArray],
    unknown_and_new: tuple[int, int],
    positions: tuple[int, int],
) -> FileStats:
    answers = Counter(TEXT.gold(problem.answer) for problem in problems)
    frequent, count = answers.most_common(1)[0]
    return FileStats(
        name=name,
        lengths=lengths,
        num_steps=np.array([len(problem.steps) for problem in problems], np.int64),
        num_blank=sum(problem.num_blank_steps > 0 for problem in problems),
        num_unanswered=sum(not problem.has_answer for problem in problems),
        notes=tuple(warnings_about(problems, TEXT, name)),
        duplicate_questions=len(problems) - len({problem.question for problem in problems}),
        num_answers=len(answers),
        frequent_answer=frequent,
        frequent_count=count,
        num_unknown=unknown_and_new[0],
        num_new=unknown_and_new[1],
        positions=positions,
    )


def _count_unknown(counts: IntArray, num_problems: int, tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.unk_token_id is None:
        return 0
    # Byte-level tokenizers may use the end-of-sequence token as unknown token; training adds one to each problem.
    added = num_problems if tokenizer.unk_token_id == tokenizer.eos_token_id else 0
    return int(counts[tokenizer.unk_token_id]) - added


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    ended = ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[:-1] if ended else ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text.strip(" ").replace("\n", "⏎") + " <eos>" * ended
