"""What Windows lacks is not needed: every module is imported, and the work done, without it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from osteo.app.messages import CONF
from osteo.files import portable

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import importlib, os, pkgutil, signal, sys
from pathlib import Path

def load_everything():
    import osteo
    names = [module.name for module in pkgutil.walk_packages(osteo.__path__, "osteo.")]
    for name in [*names, "hydra_plugins.osteo_search", "hydra_plugins.osteo_slurm"]:
        if not name.endswith("__main__"):
            importlib.import_module(name)

load_everything()  # with what others need of Linux
for name in list(sys.modules):
    if name.partition(".")[0] == "osteo" or name.startswith("hydra_plugins.osteo"):
        del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "posix_fallocate", "O_DIRECTORY", "getuid", "geteuid", "mkfifo", "register_at_fork", "killpg",
             "sched_getaffinity", "uname", "getpgid", "setsid", "statvfs", "pread", "pwrite", "chown", "fchmod"):
    delattr(os, name)
for name in ("SIGPROF", "SIGALRM", "SIGHUP", "ITIMER_PROF", "setitimer",
             "alarm", "pthread_sigmask", "sigwait"):
    delattr(signal, name)
load_everything()

from osteo.cli import main
from osteo.data.phantom import write_archives

def call(*arguments):
    sys.argv = ["osteo", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code

write_archives(Path("made"), seed=3, kaggle={"normal": 8, "osteoporosis": 8}, mendeley={"normal": 1, "osteoporosis": 1})
data = ["data=folder", "data.root=made/kaggle", "data.image_size=32", "data.batch_size=8"]
call("prepare", *data)
call("train", *data, "model.backbone=test_resnet", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=null",
     "output_dir=run")
call("status", "run")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_everything_is_imported_and_a_run_is_made_without_what_windows_lacks(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/metrics.json").exists()
    for path in (tmp_path / "run").rglob("*"):
        assert portable(path.relative_to(tmp_path).as_posix()) == path.relative_to(tmp_path).as_posix()


def test_default_directories_are_named_as_windows_allows() -> None:
    hydra = yaml.safe_load((CONF / "application.yaml").read_text(encoding="utf-8"))["hydra"]
    for default in (hydra["run"]["dir"], hydra["sweep"]["dir"]):
        times = default.partition("},")[2].replace("${now:", "").replace("}", "")
        assert portable(times) == times


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal/a.png", "normal/a.png"),
        ("scan 10:30?.png (left half)", "scan 10_30_.png (left half)"),
        ("a\\b/con/NUL.png", "a_b/_con/_NUL.png"),
        ("ends. /console", "ends_/console"),
        ("Röntgen-人.png", "Röntgen-人.png"),
    ],
)
def test_a_portable_name(name: str, expected: str) -> None:
    assert portable(name) == expected
