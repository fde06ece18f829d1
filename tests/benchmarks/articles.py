"""Articles in the form of the benchmarks' data."""

import json
from pathlib import Path


def write_articles(folder: Path, count: int) -> None:
    """Write so many articles of 60 sentences, of which twelve are held out."""
    articles = [
        {"title": f"{number}", "text": " ".join(_sentence(number, at) for at in range(60))}
        for number in range(count)
    ]
    for name in ("wikipedia_articles.jsonl", "wikipedia_passages.jsonl"):
        lines = [json.dumps({"id": "", **one}) for one in articles]
        (folder / name).write_text("\n".join(lines))


def _sentence(article: int, at: int) -> str:
    return f"In place {at} of {article} the keeper counted {at + article} ships at night."
