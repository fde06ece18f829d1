"""The demo: an invented world, and a small language model that reads it."""
