"""The check of the built site, `tools/check_site.py`: it finds dead links and wide pages."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "check_site.py"
PAGE = '<body style="margin:0"><div style="{box}"><article style="width:{wide}px">x</article></div>'


def tool() -> ModuleType:
    """Return the module, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("check_site", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_to_a_missing_file_or_anchor_is_found(tmp_path: Path) -> None:
    """Links to what is there, and to other sites, are not reported."""
    there = '<h1 id="top">x</h1><a href="b.html#end">x</a><a href="https://example.org/a">x</a>'
    (tmp_path / "a.html").write_text(there, encoding="utf-8")
    dead = '<p id="end">x</p><a href="a.html#no">x</a><img src="no.png"><a href="#end">x</a>'
    (tmp_path / "b.html").write_text(dead, encoding="utf-8")

    assert tool().dead_links(tmp_path) == [
        "b.html: the link a.html#no leads nowhere",
        "b.html: the link no.png leads nowhere",
    ]


@pytest.mark.slow  # it starts a browser
def test_a_page_that_scrolls_sideways_is_found(tmp_path: Path) -> None:
    """By itself, or in a box around the text; what scrolls within the text is fine."""
    check = tool()
    browser = next(filter(None, map(shutil.which, check.BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome")
    pages = {
        "box.html": PAGE.format(box="overflow-x:auto", wide=500),
        "fits.html": PAGE.format(box="overflow-x:auto", wide=300),
        "page.html": PAGE.format(box="", wide=500),
        "table.html": PAGE.format(box="", wide=300).replace(
            "x</article>",
            '<div style="overflow-x:auto"><p style="width:900px">x</p></div></article>',
        ),
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with check.served(tmp_path) as address:
        found = check.Browser(browser, address).widths(sorted(pages), 375)

    assert found == [500, 375, 500, 375]
