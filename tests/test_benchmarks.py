"""Benchmarks say when they cannot be trusted."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import gpu
from benchmarks.gpu import checks, inside
from benchmarks.gpu.lab import CutOffError, Job, Lab, Row, Scale
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
    with pytest.raises(SystemExit, match=r"benchmark 'spead' is unknown; choose one of: step, .*augment"):
        benchmarks.main()


def test_rows_are_kept_as_they_come_and_a_failure_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure() -> Iterator[dict[str, str]]:
        yield {"check": "first", "verdict": "PASS"}
        assert [row["check"] for row in json.loads((tmp_path / "made_up.json").read_text())["rows"]] == ["first"]
        yield {"check": "second", "verdict": "FAIL"}

    monkeypatch.setitem(sys.modules, "benchmarks.made_up", SimpleNamespace(measure=measure))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "made_up", "of a test")
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmarks, "other_jobs", list)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "made_up"])
    with pytest.raises(SystemExit) as end:
        benchmarks.main()
    assert end.value.code == 1
    assert "| second | FAIL |" in (tmp_path / "made_up.md").read_text()


def test_pictures_and_augmentation_are_compared_with_those_of_the_cpu() -> None:
    scale = Scale("cpu")
    rows = [*inside.residence(scale), *inside.augmentation(scale)]
    assert [(row.check, row.verdict) for row in rows] == [
        ("pictures on the device", "PASS"),
        *((f"augmentation as the CPU's: {name}", "PASS") for name in ("online", "online and mixup", "paper", "ops")),
    ]
    assert rows[1].figures == "largest difference of an intensity 0.0e+00 (at most 2e-03), 0.0e+00 of them above 1e-4"


@pytest.mark.slow
def test_a_sweep_is_watched_from_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEO_DEVICE", "cpu")
    monkeypatch.setenv("OSTEO_CHECKS", "sweep,reckoning")
    found = {row["check"]: row for row in gpu.measure()}
    assert {name: row["verdict"] for name, row in found.items()} == {
        "backbones train": "PASS",
        "memory between jobs": "PASS",
        "two equal jobs of a sweep: test_resnet": "PASS",
        "a sweep of 10 runs": "NOTE",
    }
    assert "same bit by bit" in found["two equal jobs of a sweep: test_resnet"]["figures"]
    assert found["memory between jobs"]["figures"].count("resident") == 2


def test_what_there_is_no_time_for_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEO_DEVICE", "cpu")
    monkeypatch.setenv("OSTEO_SECONDS", "0")
    rows = list(gpu.measure())
    assert [(row["check"], row["verdict"]) for row in rows] == [(name, "SKIP") for name in gpu.CHECKS]
    assert rows[0]["figures"] == "0 s are left, and it needs 10"


def test_a_check_that_breaks_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    def broken(lab: Lab) -> Iterator[Row]:
        yield Row("first", "PASS", "")
        raise RuntimeError("an illegal memory access")

    found = list(gpu.found("broken", gpu.Check(broken, 0, 1), Lab(tmp_path, "cpu", 60)))
    assert [row[:2] for row in found] == [("first", "PASS"), ("broken", "FAIL")]
    assert found[1].figures == "the check itself ended with RuntimeError: an illegal memory access"


def test_what_came_before_a_check_was_cut_off_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"backbone": "test_resnet", "batch": 8, "way": "eager", "seconds": 0.02}'
    command = [sys.executable, "-c", f"import time; print('{line}', flush=True); time.sleep(60)"]
    lab = Lab(tmp_path, "cpu", 600)
    lab.begin(3)
    with pytest.raises(CutOffError, match="exit 124: cut off after 3 s"):
        list(lab.lines(command))
    monkeypatch.setattr(lab, "inside", lambda *_: lab.lines(command))
    rows = list(checks.steps(lab))
    assert [(row.check, row.verdict) for row in rows] == [
        ("a step of test_resnet at batch 8", "SKIP"),
        ("a step of test_resnet at batch 16", "SKIP"),
        ("bare loops", "NOTE"),
    ]


def test_a_sweep_is_reckoned_from_its_parts(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "cpu", 60)
    lab.around = 5.0
    epochs = [{"steps": 20.0, "first": 0.02, "others": 0.19, "validation": 0.04, "rest": 0.05}] * 3
    lab.jobs[8] = [Job("test_resnet", total, epochs, {}) for total in (2.9, 1.9)]
    [row] = checks.reckoning(lab)
    # around, the first job's fixed part, nine others', and ten runs of fifty epochs of 0.3 s
    assert row.figures.startswith(f"50 epochs each: {5 + 2 + 9 + 150} s one after the other (goal 180); ")
    assert "an epoch 0.300 s (step 10.0 ms, validation 0.040, checkpoint and record 0.050)" in row.figures
    lab.bare = {("test_resnet", 8, "eager"): 0.02, ("test_resnet", 8, "graphed"): 0.0095}
    assert checks.step(lab, "test_resnet", 8, 1.10).verdict == "PASS"
    assert checks.step(lab, "test_resnet", 8, 1.05).verdict == "FAIL"
    assert checks.step(lab, "test_resnet", 16, 1.05).verdict == "SKIP"
