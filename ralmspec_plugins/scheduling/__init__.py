"""Scheduling: when to guess, to generate speculatively and to search; policies and cost models."""
