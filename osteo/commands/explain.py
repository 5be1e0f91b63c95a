"""osteo explain: what a network sees of pictures: where its evidence lies, and the feature maps of its layers."""

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.command_settings import LIST, ExplainConfig
from osteo.errors import UserError
from osteo.progress import followed
from osteo.records.named import check_input, existing_checkpoints, names_of
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("explain", ExplainConfig, explain)


def explain(config: ExplainConfig, job: Job) -> bool:
    """Draws every picture; returns whether every file could be used. With maps=list, prints the layers instead."""
    if len(names_of(config.ckpt)) > 1:
        raise UserError(f"ckpt names {len(names_of(config.ckpt))} checkpoints; layers belong to one network: name one")
    if not config.input and config.maps != LIST:
        raise UserError(
            f"name the pictures: osteo explain RUN PICTURE, or a folder or zip of them; maps={LIST} needs none"
        )
    names = existing_checkpoints(config.ckpt)
    check_input(config.input)
    with importing():
        from osteo.training.hardware import present_accelerator

    present_accelerator(config.accelerator)
    with importing():
        from osteo.inference.explain import chosen_layers, describe_layers, layers_of
        from osteo.inference.model import load_models
        from osteo.inference.predictions import answer_pictures, list_pictures, open_pictures, read_patients
        from osteo.records.outputs import EXPLANATIONS, replaced
        from osteo.report.predictions import show_explanations, write_explanations

    models = load_models(names, config.accelerator)
    network = models[0].network
    if config.maps == LIST:
        print("\n".join(describe_layers(layers_of(network))))
        return True
    layers = chosen_layers(network, config.maps)
    archive, entries = list_pictures(str(config.input))
    patients = read_patients(config.clinical, config.clinical_columns, [entry.name for entry in entries], models)
    pictures = open_pictures(archive, entries, models, patients)
    answered = answer_pictures(models, pictures, rule=config.rule, interval=False, overlay=True)
    progress = followed(answered, len(entries), "explaining")
    with replaced(job.directory, EXPLANATIONS) as folder:
        rows = write_explanations(
            folder, (row for of_picture in progress for row in of_picture), models[0], layers, config
        )
    show_explanations(job.directory, rows, layers)
    return not any(row.reason for row in rows)
