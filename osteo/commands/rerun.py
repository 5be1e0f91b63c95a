"""osteo rerun: repeats a recorded run from its record, and says whether the metrics are the same."""

import logging
import re
from dataclasses import replace
from pathlib import Path

from osteo import parts
from osteo.app import hydra as application
from osteo.checks import check
from osteo.config import RerunConfig
from osteo.errors import UserError
from osteo.records.record import Job

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("rerun", RerunConfig, rerun)


def rerun(config: RerunConfig, job: Job) -> bool:
    """Trains again and compares; returns whether every metric and every prediction is the same."""
    from osteo.commands.train import train
    from osteo.data.prepare import prepare
    from osteo.records.record import Run, environment, environment_changes, read_config
    from osteo.training.distributed import launch

    if not config.run:
        raise UserError("name a run directory: osteo rerun DIRECTORY")
    record = Run(Path(config.run).expanduser())
    if not (record.directory / "metrics.json").exists():
        raise UserError(f"run={config.run} is no finished run (it has no metrics.json)")
    if record.read_json("environment.json").get("pruned"):
        raise UserError(
            f"run={config.run} was stopped early by its search; only a run that reached its end is repeated"
        )
    text = (record.directory / "config.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^trial: \d+$", "trial: null", text, flags=re.MULTILINE)  # the repetition is none of the search's
    setting = replace(read_config(record.directory / "config.yaml"), trial=None)
    parts.check_named(setting.plugins, config.run, f"osteo rerun {config.run}")
    check(setting)
    for name, first, second in environment_changes(record.read_json("environment.json"), environment()):
        log.warning("%s was %s and is %s now", name, first, second)
    record.check_same_data(prepare(setting.data)[0])
    again = Run(job.directory)
    launch(train, setting, replace(job, config_yaml=text))
    before, now = record.read_json("metrics.json"), again.read_json("metrics.json")
    differ = {name: (before[name], now.get(name)) for name in before if before[name] != now.get(name)}
    columns = ["image_id", "logit"]
    same = record.read_table("predictions.csv")[columns].equals(again.read_table("predictions.csv")[columns])
    for name, values in differ.items():
        print(f"{name}: {values[0]} before, {values[1]} now")
    if not differ:
        print(f"all {len(before)} metrics are identical, and the logits {'too' if same else 'are not'}")
    return not differ and same
