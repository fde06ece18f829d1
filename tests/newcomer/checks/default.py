"""The number is the installed package's, and the site's page of the API shows it."""

import os
import re
from pathlib import Path

from ralmspec_plugins import Continuous

answer = (Path("answers") / "default.txt").read_text(encoding="utf-8").strip()
assert answer == str(Continuous().window), f"the answer was {answer!r}"
if site := os.environ.get("NEWCOMER_SITE"):
    page = (Path(site) / "api" / "ralmspec_plugins.html").read_text(encoding="utf-8")
    field = page.split('id="ralmspec_plugins.Continuous.window"')[1].split("</dt>")[0]
    shown = re.sub(r"<[^>]+>", "", field)
    assert answer in shown, f"the site shows {shown!r}"
