"""What the HTML pages share: templates, figures and pictures that stand in the page itself."""

import base64
import io
import re
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from osteo.errors import counted
from osteo.report.figures import BLUE, INK, STYLE, narrowed
from osteo.report.sections.glossary import link_terms, terms
from osteo.report.tables import as_markdown, cell
from osteo.task import THRESHOLD
from osteo.types import Grey

HEIGHT = 220  # of a picture on a page, in pixels


def render(template: str, **context: Any) -> str:
    """Fills a template of osteo/report/templates; values are escaped in HTML, and a missing one is an error."""
    return make_environment(autoescape=".html" in template).get_template(template).render(**context)


def make_environment(*, autoescape: bool) -> Environment:
    """What templates may use, beside what they are given."""
    environment = Environment(
        loader=PackageLoader("osteo.report", "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "cell": _cell, "markdown": as_markdown, "threshold": THRESHOLD, "counted": counted, "terms": terms,
        "linked": link_terms,
    }  # fmt: skip
    return environment


def _cell(value: object) -> Markup:
    """A table's cell; the range of an interval stands below its value."""
    text = str(escape(cell(value)))
    return Markup(re.sub(r"^(\S+) \(([^()]* to [^()]*)\)$", r'\1<span class="range">\2</span>', text))


def embed(picture: Grey) -> str:
    """A small JPEG of a picture, grey (H, W) or BGR (H, W, 3), as a data URL."""
    size = (max(1, round(picture.shape[1] * HEIGHT / picture.shape[0])), HEIGHT)
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", np.asarray(small), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def inline(figure: Figure, name: str, description: str, narrow: Figure | None = None) -> Markup:
    """A figure as SVG in two layouts, of which a screen shows the one that fits it.

    It takes its ink from the page, light or dark, and is read aloud as its description.

    Args:
        figure: drawn in `figures.STYLE`.
        name: distinguishes its parts from those of other figures on the page.
        description: what is to be seen.
        narrow: the same for a narrow screen; None where its panels need only be stacked.
    """
    return _svg(figure, name, description, "wide-only") + _svg(
        narrow or narrowed(figure), f"{name}-narrow", description, "narrow"
    )


def _svg(figure: Figure, name: str, description: str, layout: str) -> Markup:
    text = io.StringIO()
    with rc_context({**STYLE, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    attributes = f'role="img" aria-label="{escape(description)}" class="{layout}"'
    svg = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', rf"\1{attributes}", svg, count=1)
    svg = svg.replace(BLUE.lower(), f"light-dark({BLUE}, #5ab4f0)")  # too dark on a dark page
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    return Markup(svg)
