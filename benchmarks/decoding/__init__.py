"""Measures token-level speculation: speed, acceptance, costs of passes; both speculations."""
