"""An entry with title, author, year and arXiv id, as the site has them."""

import os
from html import unescape
from pathlib import Path

answer = (Path("answers") / "cite.txt").read_text(encoding="utf-8")
assert answer.lstrip().startswith("@"), "no BibTeX entry"
for part in ("Zhang, Zhihao", "2401.14021", "2024", "Language Model Serving with Speculation"):
    assert part in " ".join(answer.split()), f"{part!r} is missing"
if site := os.environ.get("NEWCOMER_SITE"):
    assert "2401.14021" in unescape((Path(site) / "citation.html").read_text(encoding="utf-8"))
