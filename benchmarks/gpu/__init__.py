"""What a GPU does with searches, passes and whole requests: `python -m benchmarks gpu`."""
