"""What the adapters of all hosts share: over plain values and raw clients, no host imported."""
