"""Benchmarks say when they cannot be trusted."""

import subprocess
import sys
import time

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.noise import note, other_jobs, spread


def test_spread_is_the_middle_half_over_the_median() -> None:
    assert spread([1.0, 1.0, 1.2]) == pytest.approx(0.2)
    assert spread([1.0, 1.0, 1.0, 1.0, 9.0]) == 0.0  # one outlier says nothing of the rest
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


def test_a_noisy_machine_is_told() -> None:
    assert note([1.0, 1.01, 1.02]) == "2%"
    assert note([1.0, 1.0, 1.0], [1.0, 1.2, 1.4]) == "33%, too noisy to trust"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_benchmarks_refuse_to_run_beside_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "osteo"])
    try:
        deadline = time.monotonic() + 10
        while not other_jobs() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert any("osteo" in job for job in other_jobs())
        monkeypatch.setattr(sys, "argv", ["benchmarks", "augment"])
        with pytest.raises(SystemExit, match="another job of ours is running"):
            benchmarks.main()
    finally:
        process.kill()
        process.wait()


def test_an_unknown_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "spead"])
    with pytest.raises(SystemExit, match="benchmark 'spead' is unknown; choose one of: step, augment"):
        benchmarks.main()
