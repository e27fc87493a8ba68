"""The HTTP layer: OpenAI's protocol over the service, and nothing that the service does not do."""
