"""Shared code of the adapters of all hosts, which imports no host."""
