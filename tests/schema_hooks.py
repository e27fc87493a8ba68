"""What ``schema_cases.py`` has schemathesis do to its cases, so that they get past the model's name."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Most bodies name a model that is there, and ask for little."""
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    if isinstance(changed.get("model"), str) and len(changed["model"]) != 1:
        changed["model"] = "tiny"
    for name in ("max_tokens", "max_completion_tokens", "n", "n_thoughts", "min_tokens", "logprobs", "top_logprobs"):
        value = changed.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 8:
            changed[name] = value % 8
    return changed
