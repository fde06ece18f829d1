"""What to ask the clients of vector stores, and how to read their rows, for every host.

No store library is imported here: the client is the one that the host's wrapper holds.
"""
