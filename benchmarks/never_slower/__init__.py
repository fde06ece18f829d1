"""Where speculation might cost time: plain and speculative runs in turn, and plain again."""
