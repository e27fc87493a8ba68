"""The cases of a recording as plain data: rows without padding, targets, and the numbers that must come out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recorded_objectives import WRAPPED, Modules, Recording
from slow_codi import CodiOptions, CodiRow
from slow_lotus import LotusOptions, LotusRow, Text
from slow_thoughts import IGNORE, Row
from torch import Tensor

UNTRUSTED = ("ragged_as_is", "ragged_fix_attn_mask", "codi_as_is", "long_steps_as_is")
"""Cases that no second program confirmed: their numbers depend on padding that is read as text, or on targets that run
into the next block."""
NAMES = {
    "student_ce": "student",
    "teacher_ce": "teacher",
    "distill": "distill",
    "explain": "step",
    "answer_ce": "answer",
    "step": "step",
    "codi": "distill",
    "ia": "blocks",
}
"""What this project calls the parts of the losses that the recordings name."""


@dataclass(frozen=True)
class Case:
    """One batch, the settings of its loss, and the numbers that were recorded."""

    recording: Recording
    record: dict[str, Any]
    """The entry in ``expected.json``."""

    @property
    def name(self) -> str:
        """The case's name in its folder."""
        return str(self.record["name"])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the public code."""
        return self.record["settings"]

    @property
    def num_thoughts(self) -> int:
        """CODI: the number of thoughts of each row."""
        return int(self.record["num_latent"])

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """The padded tensors."""
        return self.recording.tensors(f"case_{self.name}")

    def modules(self) -> Modules:
        """Fresh copies of the modules that take part."""
        recording, settings = self.recording, self.settings
        made = Modules(recording.model(with_lora=self.name == "lora"))
        if settings.get("use_prj"):
            made.projection = recording.projection()
        if recording.objective.startswith("sim_cot"):
            name = "narrow_decoder" if self.name == "narrow_decoder" else "decoder"
            made.decoder = recording.language_model(name, f"{name}_config")
            if self.name == "narrow_decoder":
                made.into_decoder = recording.into_decoder(name)
        if settings.get("ia_decoder_use_base_copy"):
            made.decoder = recording.model()
        if settings.get("codi_loss_weight"):
            made.teacher = recording.language_model("teacher", "config").requires_grad_(False)
        return made

    @property
    def prefixes(self) -> tuple[str, str]:
        """What precedes the names of the parameters of the model and of the decoder in ``grad_norms``."""
        if self.recording.objective == "sim_cot_on_coconut":
            return "base_causallm.", "expainable_llm."
        of_decoder = "ia_decoder.model." if self.recording.objective == "lotus" else "decoder."
        return (WRAPPED if self.name == "lora" else ""), of_decoder

    def parts(self) -> dict[str, float]:
        """The parts of the loss, each with its factor, and ``total``."""
        loss = self.record["loss"]
        made = {"total": loss["total"]}
        for name in self._terms():
            made[NAMES[name]] = loss.get(f"{name}_times_factor", loss.get(name))
        if self.recording.objective == "lotus":
            made["step"] *= self.settings["intermediate_loss_weight"]
        return made

    def part_norms(self) -> dict[str, float]:
        """The norm of the gradient of each part with its factor, and ``total``."""
        norms = self.record["grad_norm_of_term"]
        return {"total": self.record["grad_norm"], **{NAMES[name]: norms[name] for name in self._terms()}}

    def _terms(self) -> list[str]:
        """The recorded names of the parts; LOTUS's recordings also list the optional ``codi`` where it is off."""
        return [
            name for name in self.record["grad_norm_of_term"] if name != "codi" or self.settings["codi_loss_weight"]
        ]

    # CODI, and SIM-CoT on it

    def codi_options(self) -> CodiOptions:
        """The variant of CODI's loss."""
        return CodiOptions(
            self.settings["ref_loss_factor"],
            self.settings["distill_loss_factor"],
            self.settings["distill_loss_type"],
            self.settings["distill_loss_div_std"],
        )

    def codi_rows(self) -> list[CodiRow]:
        """The batch as student and teacher read it."""
        batch, count, bot = self.batch, self.num_thoughts, self.recording.ids["bot"]
        rows = []
        for index, (at_student, at_teacher) in enumerate(
            zip(self.record["student_distill_position"], self.record["teacher_distill_position"], strict=True)
        ):
            question = batch["encoder_input_ids"][index][batch["encoder_attention_mask"][index].bool()].tolist()
            labels = [label for label in batch["labels"][index].tolist() if label != IGNORE]
            before = len(question) + count
            student = Row(
                [*question, *[bot] * count, *batch["decoder_input_ids"][index].tolist()[: len(labels)]],
                # The first one is <eot>, which the public code shifts away.
                [*[IGNORE] * (before + 1), *labels[1:]],
                len(question),
                count,
            )
            is_text = batch["ref_attention_mask"][index].bool()
            ids = batch["ref_input_ids"][index][is_text].tolist()
            teacher = Row(ids, batch["ref_labels"][index][is_text].tolist(), len(ids), 0)
            rows.append(CodiRow(student, teacher, before + at_student, at_teacher))
        return rows

    def step_targets(self) -> list[list[list[int]]]:
        """SIM-CoT: for each row, for each group of thoughts, what the decoder must write."""
        if self.recording.objective == "sim_cot_on_coconut":
            return [list(row) for row in zip(*self.record["targets_per_thought_and_row"], strict=True)]
        # Their decoder was given this number of tokens. Only in ``ragged_steps_as_is`` is that fewer than there are.
        widths = {call["decoder_call"]: call["input_length"] - 1 for call in self.record["explain_calls"]}
        empty = [self.recording.ids["pad"]]
        return [
            [[] if group == empty else group[: widths[place]] for place, group in enumerate(row)]
            for row in self.record["explain_groups"]
        ]

    # SIM-CoT on Coconut, and LOTUS

    def rows(self) -> list[Row]:
        """The batch, one sequence a problem."""
        latent = self.recording.ids["latent"]
        rows = []
        for ids, labels, mask in zip(
            self.batch["input_ids"], self.batch["labels"], self.batch["attention_mask"], strict=True
        ):
            kept = ids[mask.bool()].tolist()
            count = kept.count(latent)
            rows.append(Row(kept, labels[mask.bool()].tolist(), kept.index(latent) if count else len(kept), count))
        return rows

    def lotus_options(self) -> LotusOptions:
        """The variant of LOTUS."""
        return LotusOptions(
            block=self.settings["c_thought"],
            loops=self.record["n_looped_iters"],
            step_factor=self.settings["intermediate_loss_weight"],
            replace=self.settings["latent_injection_mode"] == "replace",
            in_loop=not self.settings["intermediate_loss_after_loop"],
            flat=self.settings["flat_intermediate_supervision"],
        )

    def lotus_rows(self) -> list[LotusRow]:
        """The batch, and the tokens of the replaced steps."""
        rows, eos = self.rows(), self.recording.ids["eos"]
        if "replaced_cot_steps" not in self.batch:
            return [LotusRow(row, []) for row in rows]
        steps = self.batch["replaced_cot_steps"].tolist()
        return [
            LotusRow(row, [[token for token in step if token != eos] for step in row_steps])
            for row, row_steps in zip(rows, steps, strict=True)
        ]

    def lotus_texts(self) -> list[Text]:
        """LOTUS's option ``ia_after_loop``: all steps of a row as their code joins them, which loses the end.

        It keeps the padding between the steps, and cuts the text to the number of tokens that are not padding.
        """
        eos = self.recording.ids["eos"]
        texts = []
        for steps in self.batch["replaced_cot_steps"].flatten(1).tolist():
            kept = steps[: sum(token != eos for token in steps)]
            texts.append(Text(kept, [IGNORE if token == eos else token for token in kept]))
        return texts

    def lotus_pairs(self) -> list[CodiRow]:
        """LOTUS's optional distillation: student and teacher, each at the position of the first label."""
        pairs = []
        for index, (row, steps) in enumerate(self.lotus_rows()):
            at_student = next(place for place, label in enumerate(row.labels) if label != IGNORE)
            # The teacher reads no <start>.
            at_teacher = row.first_thought - 1 + sum(map(len, steps))
            mask = self.batch["teacher_attention_mask_as_called"][index].bool()
            ids = self.batch["teacher_input_ids"][index][mask].tolist()
            teacher = Row(ids, [IGNORE] * len(ids), len(ids), 0)
            pairs.append(CodiRow(row, teacher, at_student, at_teacher))
        return pairs


def trusted_cases(recording: Recording) -> Iterator[Case]:
    """The cases of a recording that a correct implementation must reproduce."""
    for record in recording.expected["cases"]:
        if record["name"] not in UNTRUSTED:
            yield Case(recording, record)
