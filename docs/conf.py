"""The site: `make docs` builds it into site/, strictly, and it needs no network to be read."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "osteo"
author = "the osteo authors"
project_copyright = "2026, the osteo authors; Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "osteo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
default_role = "code"  # docstrings quote names as Markdown does


KEYS = Path(__file__).parent / "reference" / "keys"
"""One page per command, which git does not keep."""


def write_the_keys(app: "Sphinx") -> None:
    """Makes the pages of the commands from the schema."""
    from osteo.app.reference import as_markdown
    from osteo.command_settings import COMMANDS

    KEYS.mkdir(exist_ok=True)
    for gone in {path.stem for path in KEYS.glob("*.md")} - set(COMMANDS):
        (KEYS / f"{gone}.md").unlink()
    for name in COMMANDS:
        page, text = KEYS / f"{name}.md", as_markdown(name)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def read_the_glossary(app: "Sphinx", page: str, content: list[str]) -> None:
    """The terms of the pages follow what the glossary's page begins with."""
    if page == "reference/glossary":
        from osteo.report.sections.glossary import GLOSSARY

        terms = sorted(GLOSSARY.values(), key=lambda term: term.title.lower())
        content[0] += "\n\n".join(f"({term.anchor})=\n\n## {term.title}\n\n{term.meaning}" for term in terms)


def link_to_the_site(app: "Sphinx", relative: Path, parent: str, content: list[str]) -> None:
    """Files of the repository's root link into docs/; included in a page, they link beside it."""
    content[0] = re.sub(r"\]\(docs/", "](", content[0])


def setup(app: "Sphinx") -> None:
    """Has pages made and links mended as they are read."""
    app.connect("builder-inited", write_the_keys)
    app.connect("source-read", read_the_glossary)
    app.connect("include-read", link_to_the_site)
