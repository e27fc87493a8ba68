"""A plugin of vLLM that serves checkpoints of coconut-ds, which reason in continuous thoughts.

vLLM calls ``register`` in each of its processes. Checkpoints without ``coconut.json`` are served as without the plugin.
"""


def register() -> None:
    """Registers the models, the recognition of their checkpoints, and the checks of requests."""
    from coconut_vllm.registration import register_all

    register_all()
