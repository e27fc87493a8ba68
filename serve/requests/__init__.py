"""Requests independent of HTTP: checks, time limits, and the continuations that answer them."""
