"""Prompt, thoughts, text: the thinking engine, which runs many requests at a time over one key/value cache."""
