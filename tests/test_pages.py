"""What the pages share: the glossary, tables that fit, figures for two widths, sorting and filtering."""

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from osteo.evaluation.bootstrap import Interval
from osteo.report import plots
from osteo.report.figures import INK, NARROW, STYLE, legend, narrowed
from osteo.report.html import inline, make_environment, render
from osteo.report.sections.glossary import GLOSSARY, WORDS, as_markdown, link_terms, terms
from osteo.report.tables import without_zeros
from osteo.task import BINARY
from tests.browser import SIZES, check_fits, in_browser, needs_chromium, opened

BOARD = """{% extends "base.html.jinja" %}
{% from "macros.html.jinja" import glossary, sorting, table, unfold with context %}
{% block title %}board{% endblock %}
{% block body %}<main><h1>board</h1>{{ table("All systems", board, sortable=true, unfolded=true) }}
{{ table("Hashes", hashes) }}
{{ glossary() }}</main>{% endblock %}
{% block script %}{{ unfold() }}{{ sorting() }}{% endblock %}"""


def test_every_term_of_the_glossary_is_explained_once() -> None:
    titles = [one.title for one in terms()]
    assert titles == sorted(set(titles), key=str.lower)
    assert all(one.meaning.endswith(".") for one in terms())
    assert len({one.anchor for one in terms()}) == len(GLOSSARY)
    for title in ("Youden's index", "Holm's correction", "Net benefit", "Calibration", "T-score"):
        assert title in titles
    text = as_markdown()
    assert text.startswith("# Glossary\n")
    assert text.count("\n## ") == len(GLOSSARY)
    assert "## Youden's index { #term-youden-s-index }\n" in text
    assert set(WORDS.values()) <= set(GLOSSARY)


def test_a_heading_leads_to_the_term_that_is_hardest_in_it() -> None:
    assert link_terms("AUROC, DeLong p") == ('AUROC, <a class="term" href="#term-delong-s-test">DeLong</a> p')
    assert link_terms("p, Holm") == 'p, <a class="term" href="#term-holm-s-correction">Holm</a>'
    assert link_terms("<b> & pictures") == "&lt;b&gt; &amp; pictures"


def test_columns_of_zeros_vanish() -> None:
    frame = pd.DataFrame({"class_name": ["normal", "osteoporosis"], "unreadable": [0, 0], "kept": [0, 2]})
    assert list(without_zeros(frame)) == ["class", "kept"]


def test_a_figure_is_stacked_for_a_narrow_screen_and_stays_as_it_is() -> None:
    figure = Figure(figsize=(9.5, 3.0), layout="constrained")
    first, second = figure.subplots(1, 2, sharey=True)
    first.plot([0, 1])
    second.plot([1, 0])
    narrow = narrowed(figure)
    assert tuple(narrow.get_size_inches()) == (NARROW, 6.0)
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in narrow.axes] == [(2, 1), (2, 1)]  # type: ignore[union-attr]
    assert tuple(figure.get_size_inches()) == (9.5, 3.0)
    svg = inline(figure, "name", "two lines")
    assert re.findall(r'role="img" aria-label="two lines" class="([a-z-]+)"', svg) == ["wide-only", "narrow"]
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))


LONG = [f"densenet201 optimizer.name={name} optimizer.schedule_args.warmup_epochs=5" for name in ("sgd", "adamw")]


@pytest.mark.filterwarnings("error::UserWarning")  # as of a layout that leaves no room for a panel
@pytest.mark.parametrize("is_narrow", [False, True])
def test_long_names_neither_overprint_nor_squeeze_a_figure(is_narrow: bool) -> None:
    curves = Figure(figsize=(9.5, 3.0), layout="constrained")
    for axes in curves.subplots(1, 2):
        for name in LONG:
            axes.plot([0, 1], label=name)
    with rc_context(STYLE):
        legend(curves)
    curves = narrowed(curves) if is_narrow else curves
    FigureCanvasAgg(curves).draw()
    inside = curves.legends[0].get_window_extent().transformed(curves.transFigure.inverted())
    assert 0.0 <= inside.x0 <= inside.x1 <= 1.0
    assert {text.get_color() for text in curves.legends[0].get_texts()} == {INK}  # which a dark page replaces
    assert all(axes.get_position().height * curves.get_size_inches()[1] > 2.0 for axes in curves.axes)
    assert all(axes.get_position().y0 > inside.y1 for axes in curves.axes)
    intervals = dict.fromkeys(("auroc", "accuracy"), Interval(0.7, 0.6, 0.8))
    ranked = [SimpleNamespace(system=SimpleNamespace(name=name, kind="model"), intervals=intervals) for name in LONG]
    results = SimpleNamespace(ranked=ranked, experiment=SimpleNamespace(task=BINARY))
    forest = plots.forest(results, is_narrow=is_narrow)  # type: ignore[arg-type]
    FigureCanvasAgg(forest).draw()
    names = [label.get_window_extent() for label in forest.axes[0].get_yticklabels()]
    assert len(names) == 5
    assert not any(first.overlaps(second) for first, second in pairwise(names))


def test_a_training_of_one_epoch_is_drawn_as_points() -> None:
    run = pd.DataFrame({"epoch": [0], "train/loss": [0.7], "val/loss": [0.6], "val/auroc": [0.8]})
    _, area = plots.training({"resnet18": [run, run.assign(**{"val/auroc": 0.6})]}).axes
    (point,) = area.lines
    assert (point.get_marker(), point.get_ydata()[0]) == ("o", pytest.approx(0.7))  # type: ignore[index]
    ((low, high),) = (segment[:, 1] for segment in area.collections[0].get_segments())  # type: ignore[attr-defined]
    assert (low, high) == (0.6, 0.8)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a board of ten columns, a long table, and a configuration."""
    names = ["AUROC", "accuracy", "sensitivity", "specificity", "precision", "recall", "F1", "average precision"]
    rows = [("resnet18", 0.7), ("densenet121", 0.9), ("mean of 3 models and 2 repeats, weighted", 0.8), ("none", None)]
    frame = pd.DataFrame(
        {"system": name, **dict.fromkeys(names, f"{value:.3f} (0.612 to 0.912)" if value else "-")}
        | {"pictures": 457, "repeats": 2}
        for name, value in rows
    )
    hashes = pd.DataFrame({"of": [f"run {number}" for number in range(20)], "SHA-256": "0123456789abcdef" * 4})
    path = tmp_path_factory.mktemp("board") / "board.html"
    environment = make_environment(autoescape=True)
    path.write_text(environment.from_string(BOARD).render(board=frame, hashes=hashes))
    return path


@in_browser
@needs_chromium
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_board_fits_is_sorted_and_filtered(board: Path, size: tuple[int, int]) -> None:
    with opened(board, size) as page:
        assert page.locator("details").first.get_attribute("open") is None
        specificity = page.locator("td[data-label=specificity]").first
        box = specificity.bounding_box()
        assert specificity.is_visible()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]

        def systems() -> list[str]:
            names = page.locator("table.sortable tbody th").all()
            return [name.inner_text().split()[0] for name in names if name.is_visible()]

        assert systems() == ["resnet18", "densenet121", "mean", "none"]
        page.get_by_label("Sort by").select_option("specificity")
        assert systems() == ["densenet121", "mean", "resnet18", "none"]
        page.get_by_role("button", name="Reverse").click()
        assert systems() == ["resnet18", "mean", "densenet121", "none"]
        assert page.locator("th[aria-sort=ascending]").text_content() == "specificity"
        page.get_by_label("Filter").fill("NET")
        assert systems() == ["resnet18", "densenet121"]
        assert page.locator("output").inner_text() == "2 of 4 rows"
        page.get_by_label("Filter").fill("")
        assert len(systems()) == 4
        check_fits(page)


@in_browser
@needs_chromium
def test_what_takes_much_room_is_folded_on_a_phone_and_the_board_is_short(tmp_path: Path) -> None:
    template = BOARD.replace('"Hashes", hashes', '"Results by threshold", values')
    columns = [f"metric {number}" for number in range(9)]
    frames = {"board": pd.DataFrame(1.0, range(4), columns), "values": pd.DataFrame(2.0, range(4), columns)}
    path = tmp_path / "page.html"
    path.write_text(make_environment(autoescape=True).from_string(template).render(**frames))
    for name, size in SIZES.items():
        with opened(path, size) as page:
            is_wide = name == "desktop"
            assert page.get_by_role("table", name="All systems").is_visible()
            assert page.get_by_role("table", name="Results by threshold").is_visible() is is_wide
            last = page.locator("td[data-label='metric 8']").first
            assert last.is_visible() is is_wide
            button = page.get_by_role("button", name="All columns")
            assert button.is_visible() is not is_wide
            if not is_wide:
                button.click()
                assert last.is_visible()
            check_fits(page)


@in_browser
@needs_chromium
def test_what_is_folded_is_printed_and_terms_open_the_glossary(board: Path) -> None:
    with opened(board, SIZES["desktop"]) as page:
        meaning = page.locator("#term-sensitivity")
        assert not meaning.is_visible()
        page.locator("th a[href='#term-sensitivity']").click()
        assert meaning.is_visible()
        page.reload()
        assert not page.locator("td", has_text="0123456789abcdef").first.is_visible()
        page.emulate_media(media="print")
        assert (
            page.locator("td", has_text="0123456789abcdef").first.evaluate("one => one.getBoundingClientRect().height")
            > 5
        )
        assert not page.locator(".controls").first.is_visible()


def page_of_predictions(*, with_maps: bool = False) -> str:
    """One answer with its heat map, and one that is withheld."""
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    figures = []
    for call, flags in (("osteoporosis", ()), ("withheld", ("unlike the pictures that the model learnt from",))):
        answer = SimpleNamespace(
            call=call, calibrated=0.71, low=0.6, high=0.8, threshold=0.5, details={}, notes=(),
            inspection=SimpleNamespace(flags=flags),
        )  # fmt: skip
        row = SimpleNamespace(name=f"{call}.png", answer=answer)
        of_map = "The heat map is withheld, as the answer is." if flags else ""
        figures.append(
            {"row": row, "picture": picture, "has_heat": not flags, "is_withheld": bool(flags), "call": call}
            | {"of_map": of_map, "maps": "maps/a.png" if with_maps else ""}
        )
    card = {
        "class_names": ["normal", "osteoporosis"], "backbone": "resnet18", "image_size": 224, "fit": "pad", "seed": 0,
        "temperature": 1.0, "trained_on": "phantom", "data_hash": "0" * 64, "osteo": "0.1", "licence": "MIT",
    }  # fmt: skip
    facts = {"notes": ["Research use only."], "failed": [], "models": [card]}
    return render("predictions.html.jinja", title="2 answers by resnet18", figures=figures, **facts)


def test_a_withheld_answer_shows_neither_a_number_nor_a_map() -> None:
    page = page_of_predictions()
    withheld = page[page.index("withheld.png<br>") :].split("</figure>")[0]
    assert "No answer" in withheld
    assert "0.71" not in withheld
    assert 'alt="what the model saw of withheld.png"' in page
    assert 'alt="what the model saw of osteoporosis.png, and its Grad-CAM for osteoporosis"' in page
    assert page.count('class="legend"') == 1


@in_browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("with_maps", [False, True], ids=["predict", "explain"])
def test_the_page_of_predictions_fits_a_screen(
    tmp_path: Path, size: tuple[int, int], scheme: str, with_maps: bool
) -> None:
    (tmp_path / "predictions.html").write_text(page_of_predictions(with_maps=with_maps), encoding="utf-8")
    with opened(tmp_path / "predictions.html", size, scheme) as page:
        check_fits(page)
