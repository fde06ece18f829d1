"""A bug that is planted to see it caught."""

from dataclasses import dataclass

EQUALITY = "tests/test_equality.py"


@dataclass(frozen=True)
class Bug:
    """One replacement that makes the code wrong."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str = EQUALITY
