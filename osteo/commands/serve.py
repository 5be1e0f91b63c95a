"""osteo serve: a page on this computer that answers the pictures dropped on it."""

from contextlib import suppress

from osteo.app import hydra as application
from osteo.app.extras import importing, needs
from osteo.command_settings import ServeConfig
from osteo.records.named import existing_checkpoints
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("serve", ServeConfig, serve)


def serve(config: ServeConfig, job: Job) -> bool:
    """Prints the address and answers until Ctrl-C."""
    needs("osteo serve", "serve", "fastapi", "uvicorn")
    names = existing_checkpoints(config.ckpt)
    with importing():
        from osteo.training.hardware import present_accelerator

    present_accelerator(config.accelerator)

    with importing():
        from osteo.inference.model import load_models
        from osteo.serving import server

    models = load_models(names, config.accelerator)
    app = server.make_app(models, config)
    with suppress(KeyboardInterrupt), server.listen(config.host, config.port) as listening:
        if config.host not in server.LOOPBACK:
            print(f"host={config.host} lets other machines connect, without encryption or a login", flush=True)
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(models[0].card.intended_use)
        print(f"page         http://{host}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
        server.serve(app, listening)
    return True
