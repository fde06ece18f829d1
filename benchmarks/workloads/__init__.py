"""Measures FLARE, Iter-RetGen and multi-hop with a model and a store that wait."""
