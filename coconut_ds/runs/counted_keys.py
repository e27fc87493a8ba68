"""Which keys of the configuration count in a run's signature, and what older versions recorded for them."""

from coconut_ds.settings import ObjectiveConfig
from coconut_ds.settings.schema import leaf_keys, value_of

NOT_A_NUMBER = (
    # Names, output folders, loggers and which checkpoints are kept.
    "run.name",
    "run.save_path",
    "run.project",
    "run.wandb_entity",
    "run.wandb",
    "run.trackers",
    "run.watchdog_s",
    "run.watchdog_ends",
    "run.log_every",
    "run.save_only_improve",
    "run.async_save",
    "training.save_every",
    "training.save_every_steps",
    "training.keep_last",
    "training.keep_best",
    # Which attempt to continue, and for how many epochs.
    "run.resume_mode",
    "run.resume_attempt_id",
    "run.allow_mismatch",
    "run.signature_ignore_keys",
    "training.num_epochs",
    # Training does not read these.
    "run.only_eval",
    "data.cache_path",
    "data.made_by",
    "data.test_path",
    # How a global batch is divided into micro batches.
    "training.batch_size_training",
    "training.gradient_accumulation_steps",
    "training.batch_size_eval",
    # Whether activations are stored or recomputed, and in which order gradients are added up.
    "training.activation_checkpointing",
    "training.defer_gradients",
    # How often weights are gathered under ZeRO-3.
    "deepspeed.hold_weights",
)
"""Configuration keys that cannot change a number and are left out of the table."""
LATER_KEYS = {
    "data.answers": "text",
    "data.scoring": "exact",
    "data.chat_template": False,
    "data.num_symbols": None,
    "data.schedule": (),
    "data.balanced": False,
    "model.fused_kernels": "off",
    "run.tf32": False,
    "training.lr_schedule": "constant",
    "training.lr_schedule_over": "run",
    "training.advance_metric": "accuracy",
} | {f"objective.{key}": value_of(ObjectiveConfig().model_dump(mode="json"), key) for key in leaf_keys(ObjectiveConfig)}
"""Keys that older versions lack, with the value that means what those versions did. A key with that value is left out
of the table, so that runs begun with an older version keep their signature. Keys that an objective reads are in the
table of its runs, whatever their value."""
EARLIER_DEFAULTS = {
    "data.num_nodes": ([16, 24], "synthetic"),
    "data.num_layers": ([4, 6], "synthetic"),
    "data.num_edges": ([24, 40], "synthetic"),
    "data.num_hops": ([3, 4], "prosqa_symbolic"),
    "data.wording": ("sentences", "synthetic"),
}
"""Keys whose default is null, but had a value in older versions: that value, and the only kind of data that read it.
The table has it in place of null, so that runs begun with an older version keep their signature."""
