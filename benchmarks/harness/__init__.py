"""Benchmarks on one small harness: what is measured is data, every number comes with its spread."""
