"""Merging the searches of concurrent requests: who waits, and what runs."""
