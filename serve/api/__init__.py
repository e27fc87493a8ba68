"""The HTTP layer: OpenAI's protocol on top of the service. All work is done by the service."""
