"""`ralmspec demo`."""


def demo() -> None:
    """Show it."""
