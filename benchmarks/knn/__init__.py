"""Benchmarks of KNN-LM: texts and models, measured and simulated runs, and their tables."""
