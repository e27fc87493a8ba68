"""The problems of a run as tokens: read from the token cache or tokenized, and checked against model and each other."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from coconut_ds.data.checks import file_warnings, is_scored, name_of, warnings_about
from coconut_ds.data.encoding import unknown_share
from coconut_ds.data.graph_answers import graph_fault
from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source, check_splits, training_file
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.token_table import cached_tokens, hash_question
from coconut_ds.data.tokens import encode_cue, tokenize
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError
from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method, TokenizedProblem
from coconut_ds.methods.layout import lay_out, lay_out_prompt
from coconut_ds.settings import DataConfig

Check = Callable[[str, Sequence[TokenizedProblem]], None]
Notify = Callable[[str], None]
MOST_UNKNOWN = 0.5
"""Largest share of unknown tokens in questions that a model is trained with."""


class RunProblems:
    """Training and validation problems. Those that stay the same in all epochs are tokenized and checked once."""

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        notify: Notify,
        excused: Callable[[], AbstractContextManager[None]] = nullcontext,
        hops: HopReader | None = None,
        needs_graphs: bool = False,
    ) -> None:
        """Reads or generates the problems of the first epoch and the validation problems.

        Args:
            source: gives the problems.
            data: the settings of the source.
            tokenizer: used, but not modified.
            notify: receives lines for the log, about the cache, about questions that occur in two files, and about
                validation problems that cannot be scored or analysed.
            excused: makes the context in which this process waits for another one that tokenizes the same file.
            hops: finds the hops of the training problems (``ProblemArrays.hops``); None: they are not needed.
            needs_graphs: whether a problem without a usable graph is an error.

        Raises:
            DataError: a file cannot be used, no validation problem can be scored, or a problem has no graph although
                it needs one.
        """
        self._source, self.hop_reader = source, hops
        self._needs_graphs, self._train_name = needs_graphs, name_of(data, "training")
        self._tokenizer, self._format, scoring = tokenizer, data.text_format, data.convention
        self.valid = source.valid()
        where, path = name_of(data, "validation"), training_file(source)
        lines = [*(() if path is None else file_warnings(path)), *file_warnings(where)]
        for line in lines + warnings_about(self.valid, data.text_format, where, scoring):
            notify(line)
        if not any(is_scored(problem, data.text_format, scoring) for problem in self.valid):
            raise DataError(
                f"{where}: no problem has an answer that scoring can read, and the best checkpoint is chosen by the "
                "accuracy on these problems; set data.val_path to a file with answers"
            )
        if needs_graphs:
            check_graphs(self.valid, where)
        self.valid_tokens = self._tokenize(self.valid)
        self._check_words(tokenizer, notify)
        self._epoch = -1
        self._texts: list[Problem] = []
        self._tokens = ProblemArrays([], ())
        self._check: Check = lambda split, problems: None
        self._is_file = path is not None
        if path is not None:
            format, cache = data.text_format, data.cache_path
            self._tokens = table = cached_tokens(path, tokenizer, cache, format, notify, excused=excused)
            check_splits(data, set(table.question_hashes.tolist()), self.valid, hash_question, notify)
            if hops is not None:
                self._tokens = self._with_hops(table, self.texts(0))

    def _tokenize(self, problems: Sequence[Problem]) -> ProblemArrays:
        tokens = tokenize(self._tokenizer, problems, self._format)
        return ProblemArrays([arrays_of(tokens)], encode_cue(self._tokenizer, self._format))

    def _with_hops(self, tokens: ProblemArrays, texts: Sequence[Problem]) -> ProblemArrays:
        """Training problems with their hops, if these are needed."""
        hops = self.hop_reader
        if hops is None:
            return tokens
        if self._needs_graphs:
            check_graphs(texts, self._train_name)
        return tokens.with_hops(lambda index: hops.hops(texts[index]))

    def _check_words(self, tokenizer: PreTrainedTokenizerBase, notify: Notify) -> None:
        share = unknown_share(tokenizer, [problem.question for problem in self.valid_tokens])
        known = f"{share:.1%} of the tokens of the validation questions are unknown to the tokenizer"
        if share > MOST_UNKNOWN:
            raise DataError(f"{known}; set model.tokenizer to one that knows these words, or use other data")
        if share:
            notify(f"note: {known}")

    def check(self, check: Check) -> None:
        """Calls ``check`` on the current problems, and on those of later epochs as they are generated."""
        self._check = check
        check("validation", self.valid_tokens)
        check("training", self._tokens)

    def train(self, epoch: int) -> ProblemArrays:
        """The training problems of an epoch, counted from 0."""
        if self._is_file or epoch == self._epoch:
            return self._tokens
        texts, self._epoch = self._source.train(epoch), epoch
        if texts != self._texts:
            self._texts, self._tokens = texts, self._with_hops(self._tokenize(texts), texts)
            self._check("training", self._tokens)
        return self._tokens

    def texts(self, epoch: int) -> Sequence[Problem]:
        """The training problems of an epoch as text, in the order of ``train``. Those of a file are read when this is
        first called, and kept."""
        if not self._is_file:
            self.train(epoch)
        elif not self._texts:
            self._texts = self._source.train(epoch)
        return self._texts

    def write(self, folder: Path, with_test: bool = True) -> None:
        """Writes generated problems to ``folder`` for inspection: the latest training problems, validation and test."""
        if self._is_file:
            return
        splits = {"train": self._texts, "valid": self.valid}
        splits |= {"test": self._source.test()} if with_test else {}
        with Outputs(folder, "problems", epoch=self._epoch) as outputs:
            for split, problems in splits.items():
                file = outputs.open(f"{split}.json")
                for problem in problems:
                    file.write(problem)


def check_graphs(problems: Sequence[Problem], where: str) -> None:
    """Checks that every problem has a graph whose frontiers thoughts can learn to predict.

    Args:
        problems: the problems.
        where: names them in the message.

    Raises:
        DataError: a problem has none, or one that cannot be used; the message names the first of them.
    """
    for index, problem in enumerate(problems):
        if fault := graph_fault(problem, f"{where}: item {index}"):
            raise DataError(
                f"{fault}. Thoughts learn to predict all nodes at their hop, which needs the edges of each problem; "
                "set objective.supervised_thoughts.thought_targets=path to predict the steps alone, or use problems "
                "with graphs, such as data=prosqa_symbolic"
            )


def check_lengths(
    views: Sequence[Method],
    last_stage: int,
    spec: CurriculumSpec,
    context: int,
    split: str,
    problems: Sequence[TokenizedProblem],
) -> None:
    """Checks that every problem fits the model's context at every stage.

    Args:
        views: the methods that lay out the sequences (``Objective.views``).
        last_stage: last stage of the curriculum.
        spec: of the curriculum.
        context: maximum number of positions.
        split: name of the problems, for the message.
        problems: the problems to check.

    Raises:
        DataError: a problem does not fit; the message names the first of them.
    """
    most = max(method.num_latents(last_stage, None, spec) for method in views)
    for index, problem in enumerate(problems):
        # An upper bound over all stages, which most problems pass; laying out every stage takes longer.
        tokens = len(problem.question) + sum(map(len, problem.steps)) + len(problem.cue) + len(problem.answer)
        if tokens + most + 2 <= context:
            continue
        longest = max(_longest(method, problem, last_stage, spec) for method in views)
        if longest > context:
            raise DataError(
                f"{split} problem {index} has {longest} tokens including thoughts or pauses; the model's context is "
                f"{context} (its attention window, if that is shorter); shorten it, use fewer thoughts, or set "
                "model.model_config_overrides (n_positions) for scratch models"
            )


def _longest(method: Method, problem: TokenizedProblem, last_stage: int, spec: CurriculumSpec) -> int:
    """Most positions that a problem takes at any stage: in training, or at inference with one generated token."""
    any_ids, most = MarkerIds(0, 0, 0, 0), 0
    for stage in range(max(last_stage, method.num_stages(problem, spec)) + 1):
        # At inference the number of thoughts does not depend on the gold steps.
        prompt = lay_out_prompt(method, problem.question, method.num_latents(stage, None, spec), any_ids, problem.cue)
        most = max(most, len(lay_out(method, problem, stage, spec, any_ids)), len(prompt) + 1)
    return most
