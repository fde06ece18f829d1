"""Speculative retrieval for LlamaIndex: the same responses as the host's query engine, sooner."""
