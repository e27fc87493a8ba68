"""Noise on the values of prompt and thoughts (``grpo.exploration=svp``)."""

import copy
from dataclasses import replace

import pytest
import torch
from making_completions import MARKERS, QUESTIONS, WRITTEN, completions_of, config_of
from slow_thoughts import IGNORE, think
from tiny_models import make_model
from transformers import DynamicCache

from coconut_ds.methods import METHODS
from coconut_ds.methods.layout import lay_out_prompt
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.value_directions import value_projections
from coconut_ds.objectives.grpo import Grpo
from coconut_ds.training.batches import BatchGeometry, plan_update
from coconut_ds.training.iterations import prepare_noise


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_noise_on_values_is_another_value_projection_up_to_the_last_thought(family):
    """Log probabilities of completions equal those of a model with other singular values, whose keys and values the
    unchanged model then reads."""
    config = config_of("grpo.exploration=svp", "grpo.svp_scale=0.8")
    objective, model = Grpo(config), make_model(family).eval()
    loop = objective.equip(LatentLoop(model))
    prepare_noise(loop, is_due=True)
    sizes = loop.noise_sizes
    completions = replace(completions_of(config, 3, loop.width, known=False), sizes=sizes)
    (view,) = plan_update(completions.views[0], BatchGeometry(5, 5, 1, 1), 0, "token")
    found = loop(objective.log_probabilities, objective.collate(Collator(0), completions, [view]))
    codes = objective.exploration.draw(completions.keys, 3, sizes).codes
    wanted = []
    for row in view.rows.tolist():
        layout, other = completions.views[0][row], copy.deepcopy(model)
        for projection, code in zip(value_projections(other), codes[row], strict=True):
            weight = projection.module.weight.data
            # The last columns of GPT-2's matrix, which is stored transposed.
            values = weight[:, -projection.size :] if family == "gpt2" else weight.T
            left, singular, right = torch.linalg.svd(values, full_matrices=False)
            values.copy_((left * singular * (1 + 0.8 * code)) @ right)
        with torch.no_grad():
            embeds, end = think(other, layout)[0][None], layout.first_thought + layout.num_thoughts
            cache = DynamicCache()
            other.base_model(inputs_embeds=embeds[:, :end], past_key_values=cache, use_cache=True)
            states = model.base_model(inputs_embeds=embeds[:, end:], past_key_values=cache, use_cache=True)
            logits = model.get_output_embeddings()(states.last_hidden_state[0])
        logits[:, list(MARKERS.all())] = -torch.inf
        every = logits.log_softmax(dim=-1)
        places = [place for place, label in enumerate(layout.labels) if label != IGNORE]
        wanted += [float(every[place - 1 - end, layout.labels[place]]) for place in places]
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert loop.value_directions is not None
    plain = loop(objective.log_probabilities, objective.collate(Collator(0), replace(completions, keys=()), [view]))
    assert (plain - found).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_values_have_noise_in_the_prompt_and_in_thoughts_and_nowhere_else(family, dtype):
    """Rows with different numbers of thoughts. In bf16, the tokens after the thoughts share the last one's pass."""
    objective, model = Grpo(config_of("grpo.exploration=svp", "grpo.svp_scale=0.8")), make_model(family).to(dtype)
    loop, seen = objective.equip(LatentLoop(model)).eval(), []
    prepare_noise(loop, is_due=True)
    projection = value_projections(model)[1]

    def differences(module, arguments, output):
        plain = module.forward(arguments[0])
        assert torch.equal(output[..., : -projection.size], plain[..., : -projection.size])
        seen.append((output != plain)[..., -projection.size :].any(dim=-1))

    projection.module.register_forward_hook(differences)
    method = METHODS[objective.config.method.kind]
    prompts = [lay_out_prompt(method, question, 2 + n % 2, MARKERS) for n, question in enumerate(QUESTIONS)]
    rows = [prompt.continued(tokens) for prompt, tokens in zip(prompts, WRITTEN, strict=True)]
    completions = replace(completions_of(objective.config, 2, loop.width, False), views=(Layouts.of(rows),))
    completions = replace(completions, sizes=loop.noise_sizes)
    (view,) = plan_update(completions.views[0], BatchGeometry(5, 5, 1, 1), 0, "token")
    batch = objective.collate(Collator(0), completions, [view])
    loop(objective.log_probabilities, batch)
    inputs = batch.batch.inputs
    prefix = torch.ones_like(inputs.prefix_ids, dtype=torch.bool)
    rest = torch.zeros_like(inputs.rest_ids, dtype=torch.bool)
    assert rest.shape[1]
    assert not inputs.is_thought.all()
    assert torch.equal(torch.cat(seen, dim=1), torch.cat([prefix, inputs.is_thought, rest], dim=1))
