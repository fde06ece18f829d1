"""What the site is built of besides its pages: written or copied before Sphinx reads them.

The pages of the API and of the command line are written from the code, the notebooks and the
reports of the benchmarks are copied. Links to other files of the repository lead to its host.
"""

import re
import shutil
from pathlib import Path
from typing import Any, Final

from api_pages import ApiPages
from cli_page import cli_page

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = "https://github.com/ralmspec/ralmspec-plugins"
# Of the folders that are copied: where the copies are, below docs/.
COPIES: Final = {"notebooks": "notebooks", "benchmarks/results": "results"}
REPORTS: Final = (
    "paper/report.md",
    "ablations/report.md",
    "decoding/report.md",
    "rapid/report.md",
    "rapid/trained.md",
    "agents.md",
    "knn_lm.md",
    "simulated.md",
)
_ANCHOR: Final = re.compile(r'(?m)^<a id="([\w-]+)"></a>$')
_LINK: Final = re.compile(r"(\]\()((?:\.\./)+)([^)#\s]*)")


def write_pages(app: Any) -> None:
    """Write and copy what is not in docs/."""
    docs = Path(app.srcdir)
    ApiPages(ROOT).write(docs / "api")
    _write(docs / "cli_options.md", cli_page())
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _copy(notebook, docs / "notebooks" / notebook.name)
    results = ROOT / "benchmarks" / "results"
    for report in (*REPORTS, *(one.relative_to(results) for one in results.rglob("*.svg"))):
        _copy(results / report, docs / "results" / report)


def point_links(app: Any, docname: str, source: list[str]) -> None:
    """Point links to files outside of docs/ to their copies, or to the repository's host."""
    if docname.startswith(("api/", "notebooks/")):
        return
    origin = ROOT / "docs" / docname
    if docname.startswith("results/"):
        origin = ROOT / "benchmarks" / docname
        if not re.search(r"(?m)^# ", source[0]):
            source[0] = f"# Benchmark: {Path(docname).parent.name}\n\n{source[0]}"
    source[0] = _ANCHOR.sub(r"(\1)=", source[0])
    source[0] = _LINK.sub(lambda found: found[1] + _target(app, docname, origin, found), source[0])


def _target(app: Any, docname: str, origin: Path, found: re.Match[str]) -> str:
    written = found[2] + found[3]
    target = (origin.parent / written).resolve()
    path = target.relative_to(ROOT).as_posix()
    up = "../" * docname.count("/")
    if path.startswith("docs/"):
        return up + path.removeprefix("docs/")
    for folder, copies in COPIES.items():
        copy = f"{copies}/{path.removeprefix(folder + '/')}"
        if path.startswith(folder + "/") and (Path(app.srcdir) / copy).exists():
            return up + copy
    if target.suffix in {".png", ".svg"}:
        return written
    return f"{SOURCE}/{'tree' if target.is_dir() else 'blob'}/main/{path}"


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", point_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
