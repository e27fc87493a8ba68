"""Asks a running server through the clients that people use. The last line of output is JSON with what each got.

    python tests/real_clients.py http://127.0.0.1:8000/v1 KEY MODEL

``tests/test_serve_clients.py`` runs this in a process of its own, because these libraries are slow to import and change
global state. A client that is not installed is left out.
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import openai

# LiteLLM would otherwise download its table of prices, and LangChain would send traces if the user has an account.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}

PROMPT = "hello"
MAX_TOKENS = 9
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
MESSAGES = [{"role": "user", "content": PROMPT}]
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "service_tier": "auto",
    "store": False,
    "user": "u",
}
"""Fields of a chat that change nothing."""
Answers = dict[str, Any]


def ask_openai(url: str, key: str, model: str) -> Answers:
    """openai-python: a conversation whose answers are sent back as it dumps them, its helpers, and a tool."""
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    chat = client.chat.completions
    first = chat.create(model=model, messages=MESSAGES, max_completion_tokens=MAX_TOKENS, temperature=0, **NEUTRAL)
    more = {"role": "user", "content": "and?"}
    said = first.choices[0].message
    options = {"model": model, "max_tokens": MAX_TOKENS}
    with chat.stream(messages=MESSAGES, **options) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "content.delta")
    old = client.completions.create(prompt=PROMPT, best_of=1, echo=False, suffix="", **options)
    return {
        "chat": said.content,
        "dumped": chat.create(messages=[*MESSAGES, said.model_dump(), more], **options).choices[0].message.content,
        "object": chat.create(messages=[*MESSAGES, said, more], **options).choices[0].message.content,
        "stream": streamed,
        "completion": old.choices[0].text,
        "tools": refusal(lambda: chat.create(messages=MESSAGES, tools=[TOOL], **options)),
    }


def ask_langchain(url: str, key: str, model: str) -> Answers:
    """LangChain's OpenAI and ChatOpenAI, which send their own defaults."""
    from langchain_openai import ChatOpenAI, OpenAI

    options: dict[str, Any] = {"base_url": url, "api_key": key, "model": model, "max_retries": 0}
    options |= {"temperature": 0, "max_tokens": MAX_TOKENS}
    writer, chat = (
        OpenAI(**options),
        ChatOpenAI(**options, **{name: NEUTRAL[name] for name in NEUTRAL if name in KNOWN}),
    )
    said = chat.invoke(PROMPT)
    parts = [{"type": "text", "text": PROMPT[:2]}, {"type": "text", "text": PROMPT[2:]}]
    return {
        "completion": writer.invoke(PROMPT),
        "completion stream": "".join(writer.stream(PROMPT)),
        "completion batch": writer.batch([PROMPT, PROMPT]),
        "completion stop": writer.invoke(PROMPT, stop=["\x00no such text"]),
        "chat": said.content,
        "chat stream": "".join(str(one.content) for one in chat.stream(PROMPT)),
        "chat parts": chat.invoke([("user", parts)]).content,
        "dumped": chat.invoke([("user", PROMPT), said, ("user", "and?")]).content,
        "usage": said.usage_metadata["total_tokens"] > 0,
        "tools": refusal(lambda: chat.bind_tools([TOOL]).invoke(PROMPT)),
    }


KNOWN = ("n", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "service_tier", "store")
"""Neutral fields that ChatOpenAI has as parameters of its own."""


def ask_litellm(url: str, key: str, model: str) -> Answers:
    """LiteLLM, as OpenAI's provider, as vLLM's, and for the old completions."""
    import litellm

    # It writes advice to standard output after each error.
    litellm.suppress_debug_info = True

    def ask(provider: str, **more: Any) -> Any:
        made = {"messages": MESSAGES, "max_tokens": MAX_TOKENS, "api_base": url, "api_key": key, "num_retries": 0}
        return litellm.completion(model=f"{provider}/{model}", **{**made, **more})

    first = ask("openai", temperature=0, **NEUTRAL).choices[0].message
    old = {"prompt": PROMPT, "max_tokens": MAX_TOKENS, "api_base": url, "api_key": key}
    pieces = (one.choices[0].delta.content or "" for one in ask("openai", stream=True))
    more = [*MESSAGES, first.model_dump(), {"role": "user", "content": "and?"}]
    return {
        "chat": first.content,
        "dumped": ask("openai", messages=more).choices[0].message.content,
        "stream": "".join(pieces),
        "vllm": ask("hosted_vllm", top_k=-1).choices[0].message.content,
        "completion": litellm.text_completion(model=f"text-completion-openai/{model}", **old).choices[0].text,
        "tools": refusal(lambda: ask("openai", tools=[TOOL])),
    }


def refusal(call: Callable[[], Any]) -> str:
    """The error's class and message; clients raise OpenAI's class or one that inherits from it."""
    try:
        call()
    except openai.BadRequestError as error:
        return f"BadRequestError: {error}"
    return "was not refused"


CLIENTS: dict[str, Callable[[str, str, str], Answers]] = {
    "openai": ask_openai,
    "langchain_openai": ask_langchain,
    "litellm": ask_litellm,
}
"""Functions by the package that they need."""


def main() -> None:
    """Command line. An error of one client does not hide what the others got."""
    told: dict[str, Answers] = {}
    for name, ask in CLIENTS.items():
        if importlib.util.find_spec(name) is not None:
            try:
                told[name] = ask(*sys.argv[1:])
            except Exception:
                told[name] = {"error": traceback.format_exc()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
