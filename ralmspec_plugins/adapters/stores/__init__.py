"""Batch searches of vector stores by their clients, for all hosts.

No store library is imported here: the client is that of the host's wrapper.
"""
