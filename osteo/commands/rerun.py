"""osteo rerun: repeats a recorded run, and says whether its metrics are the same."""

import logging
import re
from dataclasses import replace
from pathlib import Path

from osteo import parts
from osteo.app import hydra as application
from osteo.checks import check
from osteo.command_settings import RerunConfig
from osteo.errors import UserError, counted, printable
from osteo.records.environment import environment, environment_changes
from osteo.records.record import Job, Run
from osteo.records.sweep import changes, run_of

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("rerun", RerunConfig, rerun)


def rerun(config: RerunConfig, job: Job) -> bool:
    """Trains again and compares; returns whether every metric and every prediction is the same."""
    if not config.run:
        raise UserError("name a run directory: osteo rerun DIRECTORY")
    record = run_of(Path(config.run).expanduser())
    if record.is_pretraining:
        raise UserError(f"run={config.run} is a pretraining run, which has no predictions to compare")
    if not (record.directory / "metrics.json").exists():
        raise UserError(
            f"run={config.run} is not a finished run (it has no metrics.json); finish it first:"
            f" osteo train resume={config.run}"
        )

    from osteo.commands.train import train
    from osteo.data.prepare import prepare
    from osteo.training.distributed import launch

    first, facts = record.read_results()
    before = record.read_predictions()[["image_id", "logit"]]
    if facts.get("pruned"):
        raise UserError(
            f"run={config.run} was stopped early by its search; only a run that reached its end can be repeated"
        )
    changes([record])
    recorded = replace(record.read_settings(), trial=None)
    text = (record.directory / "config.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^trial: \d+$", "trial: null", text, flags=re.MULTILINE)  # it is no trial any more
    if planned := recorded.trainer.extended_from:
        log.warning("the run was extended (from %s epochs); its repetition has all of them from the start", planned)
    parts.check_named(recorded.plugins, config.run, f"osteo rerun {config.run}")
    check(recorded)
    if record.has_status and record.state != "done":  # its metrics are those of fewer epochs
        raise UserError(f"run={config.run} is {record.state}; go on with it first: osteo train resume={config.run}")
    for name, earlier, now in environment_changes(facts, environment()):
        log.warning("%s was %s and is %s now", name, earlier, now)
    record.check_same_data(prepare(recorded.data)[0])
    repetition = Run(job.directory)
    launch(train, recorded, replace(job, config_yaml=text))
    second = repetition.read_metrics()
    changed = [name for name in first if first[name] != second.get(name)]
    same = before.equals(repetition.read_predictions()[["image_id", "logit"]])
    for name in changed:
        print(f"{printable(name)}: {first[name]} before, {second.get(name)} now")
    if not changed:
        print(
            f"all {counted(len(first), 'metric')} are identical,"
            f" {'and the logits too' if same else 'but the logits are not'}"
        )
    return not changed and same
