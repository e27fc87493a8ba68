"""Changes that schemathesis makes to the cases of ``schema_cases.py``, so that most name a model that exists."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Lets most bodies name the model that is loaded, and limits how much they request."""
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
