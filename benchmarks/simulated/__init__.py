"""Simulated runs: the real loop over real traces, in virtual time; every number is simulated."""
