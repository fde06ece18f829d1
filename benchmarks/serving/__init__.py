"""The server under load, plain and speculative, by the number of clients."""
