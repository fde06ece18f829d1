"""Micro-batching: merges the searches of concurrent requests."""
