"""The site's settings: `make docs` builds it, offline and with warnings as errors."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs" / "_extensions"), str(ROOT), str(ROOT / "integrations")]

import ralmspec_plugins

project = "ralmspec-plugins"
author = copyright = "The ralmspec-plugins authors"
version = release = ralmspec_plugins.__version__

extensions = [
    "myst_nb",
    "ralmspec_site",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_extensions"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
nb_execution_mode = "off"

html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's own underlines the names of modules like links
html_title = "ralmspec-plugins"
html_static_path = ["_static"]
html_css_files = ["site.css"]
