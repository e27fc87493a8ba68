"""The question and the problems that a configuration of ``coconut_ds.probe`` asks for."""

import random
from itertools import islice
from pathlib import Path

from coconut_ds.data.checks import is_scored
from coconut_ds.data.graph_answers import has_usable_graph
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import open_source
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig, ProbeConfig


def question_of(config: ProbeConfig) -> tuple[str, str | None]:
    """The question and, if it comes from the data, its answer."""
    if config.question is not None:
        return config.question, None
    assert config.data is not None
    chosen = problem_of(config)
    is_known = is_scored(chosen, config.data.text_format, config.data.convention)
    return chosen.question, chosen.answer if is_known else None


def problem_of(config: ProbeConfig) -> Problem:
    """The problem of the data that ``problem=`` selects."""
    assert config.data is not None
    problems = problems_of(config, config.data)
    if config.problem >= len(problems):
        raise DataError(f"problem={config.problem}: there are {len(problems)}; expected 0 to {len(problems) - 1}")
    return problems[config.problem]


def problems_of(config: ProbeConfig, data: DataConfig) -> list[Problem]:
    """The test problems, or the validation problems if there is no test file."""
    source = open_source(data, config.seed)
    return source.test() if data.kind != "file" or data.test_path is not None else source.valid()


def splits_of(config: ProbeConfig, data: DataConfig) -> tuple[list[Problem], list[Problem]]:
    """Problems to fit the probes on, and problems to score on.

    The probes are fit on training problems if there are any. Otherwise half of the problems are for the fit.
    """
    scored = [one for one in problems_of(config, data) if is_scored(one, data.text_format, data.convention)]
    fit, scored = _split(config, data, scored)
    if len(fit) < 2 or len(scored) < 2:
        raise DataError(f"data={config.data_name}: too few problems with answers; expected at least four")
    return fit[: config.num_fit], scored[: config.num_problems]


def graph_splits_of(config: ProbeConfig, data: DataConfig) -> tuple[list[Problem], list[Problem]]:
    """The same two sets as ``splits_of``, of problems whose graph can be used; either may be empty.

    Of the training problems that a generator makes, only as many are made as may be needed: it makes each problem by
    itself, and those of graphs take milliseconds.
    """
    scored = [one for one in problems_of(config, data) if has_usable_graph(one)]
    if data.kind != "file":
        train = min(data.size.train, config.num_fit + len(scored))
        data = data.model_copy(update={"size": data.size.model_copy(update={"train": train})})
    fit, scored = _split(config, data, scored)
    return list(islice(filter(has_usable_graph, fit), config.num_fit)), scored[: config.num_problems]


def _split(config: ProbeConfig, data: DataConfig, scored: list[Problem]) -> tuple[list[Problem], list[Problem]]:
    """All problems that the data has for a fit, none of which is in ``scored``, and the ones to score on."""
    if data.kind != "file" or (data.train_path is not None and Path(data.train_path).is_file()):
        held_out = {one.question for one in scored}
        fit = {one.question: one for one in open_source(data, config.seed).train(0)}.values()
        return [one for one in fit if one.question not in held_out], scored
    mixed = list(scored)
    random.Random(f"split/{config.seed}").shuffle(mixed)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
