"""What an audit finds in data whose faults are known, and what it says of data without any."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from osteo.audit.shortcuts import Facts, Shortcut, fitted_shortcuts, shortcuts
from osteo.config import DataConfig
from osteo.data.manifest import assign_groups, clean, copies, typed
from osteo.data.phantom import write_archives
from osteo.data.prepare import prepare
from osteo.data.splits import leaks
from osteo.evaluation.bootstrap import Interval, proportion
from osteo.evaluation.metrics import metric_intervals
from tests.browser import SIZES, check_fits, in_browser, needs_chromium, opened
from tests.conftest import REAL_DATA


def audit_json(folder: Path) -> dict:
    return json.loads((folder / "audit.json").read_text())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom archives with one of each fault."""
    root = tmp_path_factory.mktemp("planted") / "archives"
    write_archives(
        root,
        seed=5,
        kaggle={"normal": 20, "osteoporosis": 20},
        mendeley={"normal": 8, "osteopenia": 3, "osteoporosis": 8},
    )
    kaggle, mendeley = root / "kaggle", root / "mendeley" / "Osteoporosis Knee X-ray"

    def read(path: Path) -> np.ndarray:
        return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)

    def named(folder: str, number: int) -> Path:
        return next(path for path in (kaggle / folder).iterdir() if path.stem.rstrip("n") == str(number))

    # the same bytes in both classes; the same bytes twice in one class
    (kaggle / "osteoporosis" / "same bytes.png").write_bytes(named("normal", 1).read_bytes())
    (kaggle / "normal" / "again.png").write_bytes(named("normal", 2).read_bytes())
    # the same pixels in another file; mirrored, with the other label
    cv2.imwrite(str(kaggle / "normal" / "same pixels.png"), read(named("normal", 4)), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    cv2.imwrite(str(kaggle / "normal" / "mirrored.png"), read(named("osteoporosis", 3))[:, ::-1])
    # across sources with the other label: there the T-score decides
    cv2.imwrite(str(kaggle / "normal" / "from mendeley.png"), read(mendeley / "osteoporosis" / "OS2.jpg"))
    # odd ones
    cv2.imwrite(str(kaggle / "normal" / "inverted.png"), 255 - read(named("normal", 5)))
    cv2.imwrite(str(kaggle / "normal" / "blank.png"), np.full((300, 300), 30, np.uint8))
    cv2.imwrite(str(kaggle / "normal" / "tiny.png"), cv2.resize(read(named("normal", 6)), (60, 80)))
    cv2.imwrite(
        str(kaggle / "normal" / "photo.png"), np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    )
    (kaggle / "normal" / "torn.png").write_bytes(named("normal", 5).read_bytes()[:5000])
    return root


def arguments(root: Path, data: str = "paper") -> list[str]:
    return [f"data={data}", f"data.kaggle={root / 'kaggle'}", f"data.mendeley={root / 'mendeley'}"]


WORDS = ["data=paper", "data.kaggle=K.zip", "seed=1"]


@pytest.fixture(scope="module")
def found(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """audit.json and audit.html of the planted archives."""
    from osteo.audit.findings import audit_dataset
    from osteo.audit.page import render_page

    config = DataConfig("paper", kaggle=str(planted / "kaggle"), mendeley=str(planted / "mendeley"))
    config.split.grouped, config.split.stratify = False, ["label"]
    audit = audit_dataset(config)
    return json.loads(json.dumps(audit.as_json(), allow_nan=False)), render_page(audit, WORDS)


def test_the_page_ends_with_what_to_do(found: tuple[dict, str]) -> None:
    page = found[1]
    assert re.search(r"<title>Audit of \d+ pictures: kaggle and mendeley</title>", page)
    last = page[page.index("What to do now") :]
    assert "osteo train -m experiment=cross_validation data=paper data.kaggle=K.zip data.clean=true</pre>" in last
    assert "set contradictory copies aside and count every other picture once" in last
    assert re.search(r"\d{4}-\d\d-\d\d, osteo \S+: <code>osteo audit data=paper data.kaggle=K.zip seed=1</code>", page)
    assert "<ul></ul>" not in page


@in_browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_page_fits_a_screen(found: tuple[dict, str], tmp_path: Path, size: tuple[int, int], scheme: str) -> None:
    (tmp_path / "audit.html").write_text(found[1], encoding="utf-8")
    with opened(tmp_path / "audit.html", size, scheme) as page:
        check_fits(page)


def test_identical_files_and_contradictions_are_found(found: tuple[dict, str]) -> None:
    audit = found[0]
    assert audit["contradictory_groups"] == [["kaggle/normal/1n.jpg", "kaggle/osteoporosis/same bytes.png"]]
    assert audit["exact_duplicate_groups"] == [
        ["kaggle/normal/1n.jpg", "kaggle/osteoporosis/same bytes.png"],
        ["kaggle/normal/2nn.jpg", "kaggle/normal/again.png"],
    ]


def test_contradictions_bound_what_any_classifier_reaches(found: tuple[dict, str]) -> None:
    noise, page = found[0]["label_noise"], found[1]
    assert {title: (of["exposures"], of["contradictory"]) for title, of in noise.items()} == {
        "identical files": (2, 1), "all copies": (7, 3), "what cleaning leaves": (55, 0),
    }  # fmt: skip
    every = noise["all copies"]
    assert every["noise"]["value"] == pytest.approx((1 - (1 - 6 / 7) ** 0.5) / 2, abs=3e-4)  # 3 of 7 pairs disagree
    assert every["auroc_ceiling"]["low"] == 0.5
    assert every["auroc_ceiling"]["value"] == pytest.approx(0.676, abs=2e-3)  # 36 of 65 are normal
    assert "Label noise: labels disagree on 3 of 7 exposures with copies." in page


def test_the_page_prints_shortcuts_of_the_file_and_of_what_a_network_sees(found: tuple[dict, str]) -> None:
    audit, page = found
    assert set(audit["fitted_shortcuts"]) == {"border", "thumbnail_8x8", "mean_spread", "outline"}
    assert audit["fit"] == "pad"
    assert "In what a network sees after data.fit=pad, " in page
    row = re.search(r'scope="row">the outline: how far plain borders reach in</th>(.*?)</tr>', page)
    assert row
    cells = [re.sub("<[^>]*>", " ", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row[1])]
    auroc = audit["fitted_shortcuts"]["outline"]["auroc"]
    assert cells[0] == "label"
    assert cells[3:5] == ["-", "-"]
    assert cells[6].split(" ", 1) == [f"{auroc['value']:.3f}", f"{auroc['low']:.3f} to {auroc['high']:.3f} "]


def test_altered_copies_are_found_with_what_was_done_to_them(found: tuple[dict, str]) -> None:
    pairs = {tuple(sorted((p["first"], p["second"]))): p for p in found[0]["near_duplicate_pairs"]}
    mendeley = "mendeley/Osteoporosis Knee X-ray/osteoporosis/OS2.jpg"
    facts = {names: (p["same_pixels"], p["mirrored"], p["contradictory"]) for names, p in pairs.items()}
    assert facts.pop(("kaggle/normal/4n.png", "kaggle/normal/same pixels.png")) == (True, False, False)
    assert facts.pop(("kaggle/normal/mirrored.png", "kaggle/osteoporosis/3.JPEG")) == (False, True, True)
    assert facts.pop(("kaggle/normal/from mendeley.png", mendeley)) == (True, False, True)
    assert facts.pop(("kaggle/normal/5nn.png", "kaggle/normal/inverted.png")) == (False, False, False)
    assert facts == {("kaggle/normal/6.jpg", "kaggle/normal/tiny.png"): (False, False, False)}
    changes = {tuple(Path(name).name for name in names): p["change"] for names, p in pairs.items() if p["change"]}
    assert changes == {("mirrored.png", "3.JPEG"): "mirrored", ("5nn.png", "inverted.png"): "inverted"}


def test_odd_pictures_are_flagged(found: tuple[dict, str]) -> None:
    odd = {Path(name).name: flags for name, flags in found[0]["odd_pictures"].items()}
    assert odd["inverted.png"] == ["inverted"]
    assert odd["blank.png"] == ["blank"]
    assert "tiny" in odd["tiny.png"]
    assert set(odd["photo.png"]) == {"coloured", "unlike the others"}
    both_knees = {"OS2.jpg", "from mendeley.png"}  # one picture with two knees, and its copy
    assert {name for name in odd if odd[name] == ["unlike the others"]} == both_knees
    assert set(odd) == {"inverted.png", "blank.png", "tiny.png", "photo.png"} | both_knees
    assert found[0]["unreadable"] == {"kaggle/normal/torn.png": found[0]["unreadable"]["kaggle/normal/torn.png"]}


def test_the_flow_adds_up(found: tuple[dict, str]) -> None:
    rows = found[0]["flow"]
    assert sum(row["found"] for row in rows) == found[0]["pictures"]
    for row in rows:
        assert row["found"] == sum(value for key, value in row.items() if key not in ("source", "class_name", "found"))
    assert next(r for r in rows if r["class_name"] == "osteopenia")["osteopenia: not in the binary task"] == 3


def test_the_sheet_reaches_the_page_only_as_a_summary(found: tuple[dict, str], planted: Path) -> None:
    from osteo.data.sources import read_mendeley

    sheet = read_mendeley(str(planted / "mendeley")).clinical
    assert sheet is not None
    audit, page = found
    text = json.dumps(audit) + page
    assert "phantom" not in text  # every patient's occupation
    for row in audit["by_split"]:
        text = text.replace(row["T-score"], "")
    assert not [score for score in sheet["t_score"] if score < 0 and f"{score:.2f}" in text]
    assert "women" in page
    assert str(planted) not in text


@pytest.mark.slow
def test_a_random_split_leaks_and_a_grouped_one_does_not(
    found: tuple[dict, str], planted: Path, osteo: Callable, tmp_path: Path
) -> None:
    assert found[0]["leaks"]["clusters"], "the paper's split puts copies on both sides"
    manifest, _ = prepare(DataConfig("clean", kaggle=str(planted / "kaggle"), mendeley=str(planted / "mendeley"),
                                     clean=True, image_size=32))  # fmt: skip
    manifest[["image_id", "split"]].to_csv(tmp_path / "clean.csv", index=False)
    done = osteo("audit", *arguments(planted), "against=clean.csv", "data.cache=cache", "output_dir=a")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1  # with a torn file among them
    assert audit_json(tmp_path / "a")["leaks"] == {"pictures": [], "clusters": [], "patients": []}
    leaky = manifest.assign(split="train").set_index("image_id")["split"]
    leaky["kaggle/normal/2nn.jpg"] = "test"
    leaky.reset_index().to_csv(tmp_path / "leaky.csv", index=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "leaky.csv").rename(tmp_path / "run" / "manifest.csv")  # as a run keeps its split
    done = osteo("audit", *arguments(planted), "against=run", "output_dir=b")
    assert done.code == 1
    assert "The split leaks: 1 set of files with the same bytes on more than one side." in done.out
    pair = ["kaggle/normal/2nn.jpg", "kaggle/normal/again.png"]
    assert audit_json(tmp_path / "b")["leaks"] == {"pictures": [pair], "clusters": [pair], "patients": []}


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("gone.csv", "against=gone.csv: no such file"),
        (".", "against=. is not the directory of a run; give one, or a split file"),
        ("empty.csv", "against=empty.csv lacks the column split; it needs image_id and split"),
        ("other.csv", "against=other.csv names none of 28 pictures"),
    ],
)
def test_a_split_that_cannot_be_checked_is_one_line(
    osteo: Callable, archives: Path, tmp_path: Path, against: str, message: str
) -> None:
    (tmp_path / "empty.csv").write_text("image_id\nx\n")
    (tmp_path / "other.csv").write_text("image_id,split\nx,train\n")
    done = osteo("audit", "data=folder", f"data.root={archives / 'kaggle'}", f"against={against}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_the_clean_set_keeps_one_of_each_and_none_that_contradicts(planted: Path) -> None:
    manifest, _ = prepare(DataConfig("clean", kaggle=str(planted / "kaggle"), mendeley=str(planted / "mendeley"),
                                     clean=True, image_size=32))  # fmt: skip
    reason = manifest.set_index("image_id")["reason"]
    for name in ("normal/1n.jpg", "osteoporosis/same bytes.png", "normal/mirrored.png", "osteoporosis/3.JPEG"):
        assert reason[f"kaggle/{name}"] == "copies with contradictory labels"
    # the T-score of OS2 says which label is right
    assert reason["kaggle/normal/from mendeley.png"] == "copies with contradictory labels"
    assert reason["mendeley/Osteoporosis Knee X-ray/osteoporosis/OS2.jpg"] == ""
    assert sorted([reason["kaggle/normal/2nn.jpg"], reason["kaggle/normal/again.png"]]) == [
        "",
        "copy of another picture",
    ]
    kept = manifest[manifest["split"] != "excluded"]
    assert copies(kept) == ([], [])


def small(rows: list[dict]) -> pd.DataFrame:
    return assign_groups(
        typed(pd.DataFrame([{"split": "", "width": 10, "height": 10, "source": "s", **r} for r in rows]))
    )


def test_the_largest_copy_is_kept() -> None:
    table = small([{"image_id": f"s/{i}", "sha256": str(i), "label": 0, "width": 10 + i} for i in range(3)])
    kept = clean(table, [("s/0", "s/1"), ("s/1", "s/2")])
    assert list(kept["split"]) == ["excluded", "excluded", ""]


def test_leaks_by_picture_cluster_and_patient() -> None:
    table = small(
        [
            {"image_id": "s/a", "sha256": "1", "patient": "P"}, {"image_id": "s/b", "sha256": "2", "patient": "P"},
            {"image_id": "s/c", "sha256": "3"}, {"image_id": "s/d", "sha256": "3"}, {"image_id": "s/e", "sha256": "4"},
        ]
    )  # fmt: skip
    apart = {"s/a": "train", "s/b": "train", "s/c": "test", "s/d": "test", "s/e": "val"}

    def found(split: dict[str, str]) -> dict[str, list[list[str]]]:
        return leaks(table.assign(split=table["image_id"].map(split)))

    assert found(apart) == {"pictures": [], "clusters": [], "patients": []}
    mixed = found(apart | {"s/b": "test", "s/d": "val"})
    assert mixed == {
        "pictures": [["s/c", "s/d"]], "clusters": [["s/a", "s/b"], ["s/c", "s/d"]], "patients": [["s/a", "s/b"]],
    }  # fmt: skip
    assert found(apart | {"s/b": "excluded"})["patients"] == []


def test_a_shortcut_is_found_where_there_is_one_and_only_there() -> None:
    rng = np.random.default_rng(0)
    rows = [{"image_id": f"s/{i}", "sha256": str(i), "label": i % 2, "format": "PNG", "mode": "L",
             "width": 300 + 40 * (i % 2) + int(rng.integers(0, 30)), "height": 400} for i in range(120)]  # fmt: skip
    table = small(rows)
    pictures = {str(i): rng.integers(0, 255, (64, 64), dtype=np.uint8) for i in range(120)}
    measured = {
        cut.name: cut for cut in shortcuts(table, pictures, {r["image_id"]: Facts(1000, 0.0) for r in rows}, None)
    }
    assert set(measured) == {"width_height", "format_bytes", "border", "thumbnail_8x8", "mean_spread"}
    assert measured["width_height"].accuracy.value == 1.0
    assert measured["width_height"].works
    assert not measured["border"].works
    assert "Neither is significantly better than chance" in measured["border"].sentence()


def test_padding_shows_the_network_what_shape_a_file_has_and_stretching_does_not() -> None:
    rng = np.random.default_rng(0)
    rows = [{"image_id": f"s/{i}", "sha256": str(i), "label": i % 2} for i in range(60)]
    files = {}
    for i in range(60):
        noise = rng.integers(20, 255, (64, 40 + 8 * (i % 2) + int(rng.integers(0, 6))), dtype=np.uint8)
        files[f"s/{i}"] = cv2.imencode(".png", noise)[1].tobytes()

    def outline(fit: str) -> Shortcut:
        found = {
            cut.name: cut
            for cut in fitted_shortcuts(small(rows), files.__getitem__, DataConfig(image_size=32, fit=fit))
        }
        assert set(found) == {"border", "thumbnail_8x8", "mean_spread", "outline"}
        return found["outline"]

    assert outline("pad").auroc.value == 1.0
    assert outline("resize").auroc.value == 0.5


def test_a_sentence_says_what_a_reported_accuracy_may_rest_on() -> None:
    cut = Shortcut("x", "width and height", 100, 0.55, Interval(0.72, 0.63, 0.8), Interval(0.75, 0.66, 0.83))
    assert cut.sentence() == (
        "From width and height alone, the label can be predicted with an accuracy of 0.720 (0.630 to 0.800)"
        " and an AUROC of 0.750 (0.660 to 0.830); always predicting the larger class gives an accuracy of 0.550. A"
        " reported accuracy of up to 0.80 may come from this alone and says nothing about bone."
    )


def test_intervals_on_known_values() -> None:
    value, low, high = proportion(40, 47)  # the paper's best accuracy
    assert (round(value, 4), round(low, 3), round(high, 3)) == (0.8511, 0.723, 0.926)
    labels, scores = np.array([0, 0, 0, 1, 1, 1] * 20), np.array([[0.1, 0.4, 0.35, 0.8, 0.3, 0.9] * 20])
    area = metric_intervals(labels, scores, list(range(120)), names=["auroc"])["auroc"]
    assert area.value == pytest.approx(7 / 9)
    assert 0.65 < area.low < 7 / 9 < area.high < 0.9
    clustered = metric_intervals(labels, scores, [i // 24 for i in range(120)], names=["auroc"])["auroc"]
    assert clustered.low < area.low  # five groups say less than 120 pictures, however much these agree
    assert clustered.high < 0.9


def test_prepare_shows_the_flow(osteo: Callable, planted: Path, tmp_path: Path) -> None:
    done = osteo("prepare", *arguments(planted, "clean"), "data.image_size=32")
    assert done.code == 0, done.err
    assert [word for word in done.out.split() if word in ("copies", "with", "contradictory", "labels")] == [
        "copies",
        "with",
        "contradictory",
        "labels",
    ]  # a heading of three lines
    assert "mendeley: 1 row without a picture: N20" in done.out
    assert "set aside kaggle/normal/torn.png" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "kaggle").is_dir(), reason="the original X-rays are not at hand")
def test_the_real_archive(osteo: Callable, tmp_path: Path) -> None:
    done = osteo("audit", "data=folder", f"data.root={REAL_DATA / 'kaggle'}", "output_dir=audit")
    assert done.code == 0, done.err
    audit = audit_json(tmp_path / "audit")
    assert (len(audit["exact_duplicate_groups"]), len(audit["contradictory_groups"])) == (13, 7)
    assert len(audit["near_duplicate_pairs"]) == 7
    assert sum(pair["contradictory"] for pair in audit["near_duplicate_pairs"]) == 2
    assert all(pair["similarity"] > 0.96 for pair in audit["near_duplicate_pairs"])
    noise = audit["label_noise"]
    assert (noise["all copies"]["exposures"], noise["all copies"]["contradictory"]) == (19, 9)
    assert noise["identical files"]["noise"]["low"] == pytest.approx(0.147, abs=1e-3)
    assert noise["all copies"]["auroc_ceiling"]["high"] == pytest.approx(0.854, abs=1e-3)
    size = audit["shortcuts"]["width_height"]["accuracy"]
    assert 0.64 < size["value"] < 0.75
    assert size["low"] < 0.69 < size["high"]
    outline = audit["fitted_shortcuts"]["outline"]["auroc"]  # padding shows the network what width and height are
    assert outline["value"] == pytest.approx(audit["shortcuts"]["width_height"]["auroc"]["value"], abs=0.05)
