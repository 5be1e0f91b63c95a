"""Experiments that detect osteoporosis in knee radiographs: the Python interface.

    from osteo import Classifier, KneeDataModule, load

    Trainer(max_epochs=20).fit(Classifier("resnet18", image_size=128), KneeDataModule("my_xrays", image_size=128))
    load("outputs/2026-11-27/12-00-00").predict("picture.png")

Nothing is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osteo.audit.findings import audit_dataset as audit_dataset
    from osteo.data.datamodule import KneeDataModule as KneeDataModule
    from osteo.inference.interface import load as load
    from osteo.report.page import write_report as write_report
    from osteo.training.module import Classifier as Classifier

_PLACES = {
    "Classifier": "osteo.training.module",
    "KneeDataModule": "osteo.data.datamodule",
    "audit_dataset": "osteo.audit.findings",
    "load": "osteo.inference.interface",
    "write_report": "osteo.report.page",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'osteo' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
