"""Speculative retrieval for LangChain: the same answers as the plain chain, sooner."""
