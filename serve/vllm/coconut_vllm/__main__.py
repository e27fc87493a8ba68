"""``python -m coconut_vllm`` prints the path of the chat template that joins messages as our own server does."""

from pathlib import Path

print(Path(__file__).with_name("chat_template.jinja"))
