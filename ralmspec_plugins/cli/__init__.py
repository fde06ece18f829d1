"""The command line: index, ask, demo, diagnose. Needs the extra `cli` (typer and rich)."""
