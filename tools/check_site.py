"""Check the built site: its links, its search index, and its pages in a browser where there is one.

python tools/check_site.py site [--pictures FOLDER]

`make docs` runs it. The browser is Chromium or Chrome; without one its part is left out, and said.
"""

import argparse
import functools
import html
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

# What readers look for, and a page that must be among what the search shows.
SEARCHES: Final = {
    "SpeculativeRetriever": "api/langchain_ralmspec.html",
    "open_retriever": "retrieval.html",
    "invalidate": "langchain.html",
    "multi_hop": "workloads.html",
    "diagnose": "does_it_pay.html",
    "BibTeX": "citation.html",
    "cite": "citation.html",
}
PAGES: Final = ("index.html", "langchain.html", "api/ralmspec_plugins.html", "pictures.html")
WIDTHS: Final = (1280, 375)  # of a screen, and of a telephone
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
_AT_ONCE: Final = 25  # pages in one run of the browser
# Shows the pages one after the other in a frame. On a narrow screen the theme has the text scroll
# sideways in a box of its own, and the page stays as narrow as the frame: both are measured.
_FRAME: Final = """<body style="margin:0">
<iframe width={width} height=1000 style="border:0"></iframe><script>
const pages = {pages}, wide = [], frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument;
  page.body.dataset.theme = "{theme}";
  let widest = page.documentElement.scrollWidth;
  for (let box = page.querySelector("article"); box; box = box.parentElement)
    if (frame.contentWindow.getComputedStyle(box).overflowX != "visible")
      widest = Math.max(widest, {width} + box.scrollWidth - box.clientWidth);
  wide.push(widest);
  if (wide.length < pages.length) frame.src = pages[wide.length];
  else document.title = "widths " + wide;
}};
frame.src = pages[0];
</script></body>"""


class Page(HTMLParser):
    """The anchors of a page, and the links and files that it names."""

    def __init__(self, text: str) -> None:
        """Read a page."""
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag defines and names."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == ("href" if tag in ("a", "link") else "src") and value:
                self.links.append(value)


def dead_links(site: Path) -> list[str]:
    """Return the links of all pages to files and anchors of the site that do not exist."""
    files = sorted(site.rglob("*.html"))
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in files}
    dead = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            lost = anchor and target in pages and anchor not in pages[target].anchors
            if not target.exists() or lost:
                dead.append(f"{file.relative_to(site)}: the link {link} leads nowhere")
    return dead


def unindexed(site: Path) -> list[str]:
    """Return the searches whose page the search index does not know for the stem of the word."""
    from sphinx.search.en import SearchEnglish

    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    stemmer = SearchEnglish({})
    faults = []
    for search, page in SEARCHES.items():
        stem = stemmer.stem(search.lower())
        found = [index[terms].get(stem, []) for terms in ("terms", "titleterms")]
        numbers = {one for some in found for one in (some if isinstance(some, list) else [some])}
        if page.removesuffix(".html") not in {index["docnames"][one] for one in numbers}:
            faults.append(f"the search index does not lead from {search!r} ({stem}) to {page}")
    return faults


class Served(SimpleHTTPRequestHandler):
    """Serves the site, and under /frame pages of it in a frame of some width."""

    def do_GET(self) -> None:
        """Answer with a file, or with the frame."""
        parts = urlsplit(self.path)
        if parts.path != "/frame":
            super().do_GET()
            return
        given = parse_qs(parts.query)
        [width], [theme], pages = given["width"], given["theme"], json.dumps(given["page"])
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(_FRAME.format(width=int(width), theme=theme, pages=pages).encode())

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve the site on this machine, and return its address."""
    handler = functools.partial(Served, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Browser:
    """A browser without a window."""

    def __init__(self, program: str, address: str) -> None:
        """Use a program for the pages of a site."""
        self._program = program
        self._address = address

    def _run(self, path: str, *options: str) -> str:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        command = [self._program, *flags, "--virtual-time-budget=20000", *options]
        done = subprocess.run(
            [*command, f"{self._address}/{path}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout

    def results(self, search: str) -> list[str]:
        """Return the addresses that the search page shows; a busy machine gets a second try."""
        for _ in range(2):
            shown = self._run(f"search.html?q={quote(search)}", "--dump-dom")
            _, _, listed = shown.partition('id="search-results"')
            if links := re.findall(r'<li[^>]*><a href="([^"]+)"', listed):
                return [html.unescape(link) for link in links]
        return []

    def widths(self, pages: Sequence[str], width: int) -> list[int]:
        """Return the width of each page's content in a frame of this width."""
        found: list[int] = []
        for start in range(0, len(pages), _AT_ONCE):
            some = pages[start : start + _AT_ONCE]
            shown = self._run(_address(some, width, "light"), "--dump-dom")
            title = re.search(r"<title>widths ([\d,]+)</title>", shown)
            found += map(int, title[1].split(",")) if title else [0] * len(some)
        return found

    def picture(self, page: str, width: int, theme: str, file: Path) -> None:
        """Take a picture of a page."""
        options = (f"--window-size={max(500, width)},1000", f"--screenshot={file}")
        self._run(_address([page], width, theme), *options)


def _address(pages: Sequence[str], width: int, theme: str) -> str:
    return f"frame?{urlencode({'width': width, 'theme': theme, 'page': pages}, doseq=True)}"


def browser_faults(browser: Browser, pages: Sequence[str]) -> list[str]:
    """Return what the search page does not find, and the pages that scroll sideways."""
    faults = []
    for search, page in SEARCHES.items():
        shown = browser.results(search)
        if not any(urlsplit(link).path.endswith(page) for link in shown):
            faults.append(f"the search page shows {shown[:5]} for {search!r}, and not {page}")
    for width in WIDTHS:
        for page, wide in zip(pages, browser.widths(pages, width), strict=True):
            if not 0 < wide <= width:
                faults.append(f"{page} is {wide} pixels wide in a window of {width}")
    return faults


def main() -> int:
    """Print the faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the pages")
    given = parser.parse_args()
    site = cast("Path", given.site).resolve()
    faults = [*dead_links(site), *unindexed(site)]
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        print(f"No browser ({', '.join(BROWSERS)}): the search page was not looked at.")
    else:
        with served(site) as address:
            browser = Browser(program, address)
            pages = sorted(one.relative_to(site).as_posix() for one in site.rglob("*.html"))
            faults += browser_faults(browser, pages)
            if given.pictures:
                given.pictures.mkdir(parents=True, exist_ok=True)
                for page, width, theme in product(PAGES, WIDTHS, ("light", "dark")):
                    name = f"{Path(page).stem}-{width}-{theme}.png"
                    browser.picture(page, width, theme, given.pictures.resolve() / name)
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
