"""docs/literature.md, made of the systems' files and of what was measured: `python -m benchmarks.literature_page`."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.__main__ import RESULTS
from osteo.app import choices
from osteo.app.hydra import CONF
from osteo.config import Config
from osteo.evaluation.metrics import all_metrics
from osteo.networks.network import Network
from osteo.report.tables import as_markdown

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "literature.md"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """What the page says."""
    systems = {name: composed(name) for name in known()}
    claims = {name: setting["claim"] for name, setting in systems.items() if "doi" in setting["claim"]}
    table = [
        {
            "file": f"`{name}`",
            "source": f"{claim['source']}, {link(str(claim['doi']))}",
            "network here": f"`{systems[name]['model']['backbone']}`",
            "parameters here (M)": f"{parameters(systems[name]) / 1e6:.1f}",
            "claims": in_words(claim),
            "read": claim["read"],
        }
        for name, claim in claims.items()
    ]
    measured = {name: json.loads(path.read_text()) for name in ("literature", "ladder", "pretrain")
                if (path := RESULTS / f"{name}.json").exists()}  # fmt: skip
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template("literature.md.jinja").render(
        claims=claims,
        claimed=as_markdown(pd.DataFrame(table)),
        measured={name: as_markdown(pd.DataFrame(of_one["rows"]).astype(str)) for name, of_one in measured.items()},
    )


def of_overrides(*overrides: str) -> Any:
    """What `osteo train` would be told."""
    choices.register(Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def known() -> list[str]:
    """The systems that `experiment=literature` sweeps, in its order, and those that need something first."""
    settings = of_overrides("experiment=literature")
    swept = str(settings.hydra.sweeper.params["experiment/literature"]).split(",")
    return [*swept, *sorted({path.stem for path in (CONF / "experiment" / "literature").glob("*.yaml")} - set(swept))]


def composed(name: str) -> dict[str, Any]:
    """The model and the claim of a system, as `osteo train` would have them."""
    settings = of_overrides("experiment=literature", f"experiment/literature={name}")
    return {"model": settings.model, "claim": settings.claim, "side": settings.data.image_size}


def parameters(setting: dict[str, Any]) -> int:
    """How many a system's network has with one logit."""
    model = setting["model"]
    with torch.device("meta"):
        network = Network(model.backbone, image_size=setting["side"], channels=model.channels)
    return sum(parameter.numel() for parameter in network.parameters())


def link(doi: str) -> str:
    """A DOI, or the address of a paper that has none, as a link."""
    return f"[{doi}](https://{'doi.org/' if doi.startswith('10.') else ''}{doi})"


def in_words(claim: dict[str, Any]) -> str:
    """What a source claims, and of how many pictures."""
    metrics = all_metrics()
    values = [f"{metrics[name].title} {100 * value:.2f} %" for name, value in claim.items() if name in metrics]
    said = ", ".join(values)
    if said and claim.get("test_pictures"):
        said += f" of {claim['test_pictures']} test pictures"
    if said and claim.get("classes", 2) == 3:
        said += ", in three classes"
    parts = [said] if said else []
    for task, of_task in claim.items():
        if hasattr(of_task, "items"):
            of_it = ", ".join(f"{metrics[name].title} {100 * value:.2f} %" for name, value in of_task.items())
            parts.append(f"task={task}: {of_it}")
    parts += [claim["also"]] if claim.get("also") else []
    return "; ".join(parts) or "no figure found in what was read"


if __name__ == "__main__":
    main()
