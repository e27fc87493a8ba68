"""Training, slow and obvious: the slow loop, torch's AdamW, whole batches; no engine, cache, micro-batches or ranks."""

import torch
from slow_loop import slow_loss

from coconut_ds.data.sequences import mixed_stage
from coconut_ds.methods.layout import Layout, lay_out
from coconut_ds.training.batches import epoch_batches
from coconut_ds.training.curriculum import learning_rate
from coconut_ds.training.experiment import Experiment


def slow_training(experiment: Experiment) -> tuple[list[float], list[float]]:
    """Losses of all updates, and validation losses of all epochs. Changes the weights.

    For runs with ``training.advance=epochs`` or ``training.stage_switches``.
    """
    training, seed, model = experiment.config.training, experiment.config.run.seed, experiment.backbone.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = {"betas": training.betas, "eps": training.eps, "weight_decay": training.weight_decay}
    optimizer = torch.optim.AdamW(parameters, **options)
    losses, validation, since_reset, previous = [], [], 0, 0

    def layout(problem, stage: int) -> Layout:
        return lay_out(experiment.method, problem, stage, experiment.spec, experiment.backbone.markers)

    def token_mean(layouts: list[Layout]) -> torch.Tensor:
        return slow_loss(model, layouts, [1 / sum(one.num_targets for one in layouts)] * len(layouts))

    for epoch in range(training.num_epochs):
        switches = training.stage_switches
        stage = epoch // training.epochs_per_stage if switches is None else sum(epoch >= one for one in switches)
        resets = {"epoch": epoch > 0, "stage": stage != previous, "never": False}
        if resets[training.reset_optimizer]:
            optimizer, since_reset = torch.optim.AdamW(parameters, **options), 0
        previous = stage
        problems = experiment.problems.train(epoch)
        for indices in epoch_batches(seed, epoch, len(problems), training.global_batch_size):
            stages = [mixed_stage(training, seed, epoch, i, stage, len(problems[i].steps)) for i in indices]
            loss = token_mean([layout(problems[i], own) for i, own in zip(indices, stages, strict=True)])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.param_groups[0]["lr"] = learning_rate(training, since_reset)
            optimizer.step()
            since_reset += 1
            losses.append(loss.item())
        with torch.no_grad():
            validation.append(token_mean([layout(one, stage) for one in experiment.problems.valid_tokens]).item())
    return losses, validation
