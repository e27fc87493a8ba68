"""Who sends requests: clients, their API keys and limits."""
