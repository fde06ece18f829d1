"""Benchmarks: a package beside the plugin, run from a checkout as `python -m benchmarks`."""
