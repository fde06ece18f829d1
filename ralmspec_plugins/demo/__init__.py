"""The demo: an invented world, and a small language model that reads it."""

from pathlib import Path

from ralmspec_plugins.demo.world import DEMO_SEED, World, count_facts, make_world

MODEL = Path(__file__).parent / "model"  # a transformers checkpoint: HuggingFaceLM.from_pretrained

__all__ = ["DEMO_SEED", "MODEL", "World", "count_facts", "make_world"]
