"""What is checked of osteo on a GPU: each yields rows, from commands as a user types them."""

import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise

import pandas as pd
import torch

from benchmarks.faults import differs
from benchmarks.gpu.lab import CLOCK, WAITS, WATCH, CutOffError, Done, Lab, OutOfTimeError, Row, jobs_of
from benchmarks.noise import python
from osteo.records.record import Run
from osteo.records.sweep import runs_of

GOALS = (1.10, 1.05)
"""Of a step, over a bare graphed one, at the smaller and the larger batch."""
RUNS, EPOCHS, LONGEST = 10, 50, 180.0
"""Runs per backbone (five folds, two seeds) and epochs of the sweep that is reckoned, and its goal in seconds."""
GROWTH = 64
"""MiB that a job may leave behind more than an equal one before it."""
CLOSE = 1e-4
"""Of two logits of a picture."""
LOSSES = 5e-3
"""Of the losses of an epoch, with CUDA graphs and without: what another order of sums comes to in bf16."""
SIDE_BY_SIDE, TOGETHER = 3, 15.0
"""Jobs on one GPU, and seconds that one of them would train alone."""
DETERMINISTIC = "trainer.deterministic=warn"


def ended(done: Done, what: str) -> str:
    """How a command ended, in words."""
    return f"{what} in {done.seconds:.0f} s" if done.code == 0 else f"exit {done.code}: {done.last_line}"


def furthest(one: Run, other: Run) -> float:
    """The largest difference of a weight of two runs' last epochs."""
    first, second = (
        torch.load(run.checkpoints / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
        for run in (one, other)
    )
    return max(float((first[key].float() - second[key].float()).abs().max()) for key in first if first[key].numel())


def on_the_device(lab: Lab) -> Iterator[Row]:
    """The machine, pictures and augmentation on the device."""
    for line in lab.inside("machine", "residence", "augmentation"):
        yield Row(**line)


def sweep(lab: Lab) -> Iterator[Row]:
    """Every backbone trains, twice with the same seed, in one process."""
    done = lab.sweep(
        "sweep",
        f"model.backbone={','.join(lab.backbones)}",
        "seed=0,0",
        "trainer.max_epochs=4",
        *CLOCK,
    )
    lab.jobs[lab.batches[0]] = jobs = jobs_of(done)
    if jobs:
        lab.around = done.seconds - (done.of("end")[-1]["at"] - done.of("begin")[0]["at"])
    runs = [run for run in runs_of(lab.folder / "sweep") if run.state == "done"]
    facts = [json.loads((run.directory / "environment.json").read_text()) for run in runs]
    losses = [list(run.read_table("history.csv")["train/loss"]) for run in runs]
    wanted = "bf16-mixed" if lab.device == "cuda" else facts[0]["precision"] if facts else ""
    is_right = (
        done.code == 0
        and len(runs) == 2 * len(lab.backbones)
        and all(f["accelerator"] == lab.device and f["precision"] == wanted for f in facts)
        and all(math.isfinite(value) for values in losses for value in values)
        and (lab.is_small or all(values[-1] < values[0] for values in losses))
    )
    each = "; ".join(
        f"{f['backbone']} {f['precision']} on {f['accelerator']}, loss {v[0]:.3f} to {v[-1]:.3f},"
        f" {f['peak_memory_mib']} MiB" for f, v in zip(facts[::2], losses[::2], strict=True)
    )  # fmt: skip
    yield Row("backbones train", "PASS" if is_right else "FAIL", f"{ended(done, 'all jobs')}; {each}")
    yield memory(done)
    for one, other in zip(runs[::2], runs[1::2], strict=False):
        yield equal(f"two equal jobs of a sweep: {facts[runs.index(one)]['backbone']}", one, other, otherwise="NOTE")


def memory(done: Done) -> Row:
    """What each job of a sweep leaves behind."""
    left = [line["memory"] for line in done.of("end")]
    grown = [
        after[name] - before[name]
        for before, after in zip(left[::2], left[1::2], strict=False)
        for name in ("allocated", "reserved")
        if name in after
    ]
    figures = "; ".join(", ".join(f"{name} {size}" for name, size in sizes.items()) for sizes in left)
    is_right = done.code == 0 and max(grown, default=0) <= GROWTH
    return Row("memory between jobs", "PASS" if is_right else "FAIL", f"MiB after each job: {figures}")


def equal(check: str, one: Run, other: Run, *, otherwise: str = "FAIL") -> Row:
    """Whether two runs have the same numbers, bit by bit."""
    found = differs(one, other)
    if not found:
        return Row(check, "PASS", "weights, metrics, predictions and curves are the same bit by bit")
    gap = furthest(one, other)
    return Row(check, otherwise, f"{', '.join(found)} differ; a weight of the last epoch by up to {gap:.1e}")


def graph(lab: Lab) -> Iterator[Row]:
    """A training with CUDA graphs against one without."""
    done = lab.sweep("graph", "trainer.graph=auto,false", f"model.backbone={lab.one}", "trainer.max_epochs=2")
    runs = [run for run in runs_of(lab.folder / "graph") if run.state == "done"]
    if done.code or len(runs) < 2:
        yield Row("graphs as eager", "FAIL", ended(done, "all jobs"))
        return
    row = equal("graphs as eager", runs[0], runs[1])
    if row.verdict == "FAIL":
        losses = [run.read_table("history.csv")["train/loss"] for run in runs]
        gap = float((losses[0] - losses[1]).abs().max())
        verdict = "PASS" if gap < LOSSES else "FAIL"
        row = row._replace(verdict=verdict, figures=f"{row.figures}; the loss of an epoch by up to {gap:.1e}")
    yield row


def large_batch(lab: Lab) -> Iterator[Row]:
    """The same backbones at the larger batch, for the time of a step."""
    batch = lab.batches[1]
    done = lab.sweep("large", f"model.backbone={','.join(lab.backbones)}", "trainer.max_epochs=5",
        f"data.batch_size={batch}", *CLOCK,
    )  # fmt: skip
    lab.jobs[batch] = jobs_of(done)
    yield Row(f"backbones train at batch {batch}", "PASS" if done.code == 0 else "FAIL", ended(done, "all jobs"))


def steps(lab: Lab) -> Iterator[Row]:
    """A step of osteo against bare loops."""
    trouble: Exception | None = None
    try:
        for line in lab.inside("loops"):
            lab.bare[line["backbone"], line["batch"], line["way"]] = line["seconds"]
    except (RuntimeError, OutOfTimeError) as error:  # those that came are compared
        trouble = error
    for batch, goal in zip(lab.batches, GOALS, strict=True):
        for backbone in lab.backbones:
            yield step(lab, backbone, batch, goal)
    if isinstance(trouble, CutOffError):  # the slowest come last: those that are compiled
        yield Row("bare loops", "NOTE", f"{trouble}: what is missing above was not measured")
    elif trouble:
        raise trouble


def step(lab: Lab, backbone: str, batch: int, goal: float) -> Row:
    """One backbone and batch."""
    check = f"a step of {backbone} at batch {batch}"
    ours = [job.step for job in lab.jobs.get(batch, []) if job.backbone == backbone]
    bare = {way: seconds for (name, size, way), seconds in lab.bare.items() if (name, size) == (backbone, batch)}
    words = [f"{way} {1e3 * seconds:.2f} ms" for way, seconds in bare.items()]
    if not ours:
        return Row(check, "SKIP", "; ".join(["it was not trained", *words]))
    figures = "; ".join(
        [f"osteo {1e3 * ours[-1]:.2f} ms", *words]
        + [f"osteo / {way} {ours[-1] / seconds:.2f}" for way, seconds in bare.items()]
    )
    if "graphed" not in bare:
        return Row(check, "NOTE", figures)
    is_right = ours[-1] <= goal * bare["graphed"]
    return Row(check, "PASS" if is_right else "FAIL", f"{figures} (goal {goal:.2f} of graphed)")


def waits(lab: Lab) -> Iterator[Row]:
    """Where the host waits for the GPU."""
    done = lab.sweep(
        "waits",
        "augment=online,paper",
        f"model.backbone={lab.one}",
        "trainer.max_epochs=3",
        *WAITS,
    )
    if done.code:
        yield Row("waits in steps", "FAIL", ended(done, ""))
        return
    for augment, line in zip(("online", "paper"), done.of("waits in steps"), strict=True):
        where = ", ".join(f"{count} at {place}" for place, count in line["where"]) or "nowhere"
        verdict = "NOTE" if lab.is_small else "FAIL" if line["count"] else "PASS"
        yield Row(f"waits in steps, augment={augment}", verdict, f"{line['count']} in {line['steps']} steps: {where}")
    for augment, line in zip(("online", "paper"), done.of("waits at an epoch's end"), strict=True):
        where = ", ".join(f"{count} at {place}" for place, count in line["where"][:8])
        yield Row(f"waits at an epoch's end, augment={augment}", "NOTE", f"{line['count']}: {where}")


def side_by_side(lab: Lab) -> Iterator[Row]:
    """Several jobs on one GPU against one after the other."""
    shared = "hydra.launcher.jobs_per_gpu=3" if lab.device == "cuda" else "hydra.launcher.n_jobs=2"
    seeds = ",".join(map(str, range(SIDE_BY_SIDE)))
    alone = [job for job in lab.jobs.get(lab.batches[0], []) if job.backbone == lab.one]
    epochs = min(150, max(10, int(TOGETHER / alone[-1].epoch))) if alone else 10  # all have begun before one ends
    done = lab.sweep(
        "beside", f"model.backbone={lab.one}", f"seed={seeds}", f"trainer.max_epochs={epochs}",
        "hydra/launcher=processes", shared, *CLOCK,
    )  # fmt: skip
    check = f"{SIDE_BY_SIDE} jobs on one GPU"
    beside = concurrent(done)
    if done.code or not alone or not beside:
        yield Row(check, "FAIL" if done.code else "NOTE", ended(done, "all jobs"))
        return
    together, one = statistics.median(beside), alone[-1].part("others")
    lab.speed_up = speed_up = SIDE_BY_SIDE * one / together
    yield Row(
        check, "PASS" if speed_up > 1 or lab.is_small else "FAIL",
        f"{ended(done, 'all jobs')}; {SIDE_BY_SIDE} epochs beside each other took {together:.3f} s, one alone"
        f" {one:.3f} s: {speed_up:.2f} times as many pictures per second",
    )  # fmt: skip


def concurrent(done: Done) -> list[float]:
    """Seconds of the steps of epochs while every process trained, the first epoch of each aside."""
    of_processes: dict[int, list[dict[str, float]]] = {}
    for line in done.of("epoch"):
        of_processes.setdefault(line["pid"], []).append(line)
    begun = max((lines[0]["at"] for lines in of_processes.values()), default=0.0)
    over = min((lines[-1]["at"] for lines in of_processes.values()), default=0.0)
    return [
        line["others"] for lines in of_processes.values() for before, line in pairwise(lines)
        if begun <= before["at"] and line["at"] <= over
    ]  # fmt: skip


def deterministic(lab: Lab) -> Iterator[Row]:
    """Two equal runs with deterministic algorithms, and one that is killed and taken up."""
    settings = [f"model.backbone={lab.one}", "trainer.max_epochs=6", DETERMINISTIC]
    more = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = lab.sweep("same", "seed=0,0", *settings, **more)
    if done.code:
        yield Row("two equal runs, deterministic", "FAIL", ended(done, ""))
        return
    whole, again = runs_of(lab.folder / "same")
    without = sorted(set(re.findall(r"(\w+) does not have a deterministic", done.text)))
    row = equal("two equal runs, deterministic", whole, again)
    yield row._replace(figures=f"{row.figures}; without a deterministic kernel: {', '.join(without) or 'nothing'}")
    killed = Run(lab.folder / "killed")
    command = [*python("osteo"), *lab.training("killed", *settings)]
    process = lab.start(command, lab.folder / "killed.txt", **more)
    while process.poll() is None and epochs_of(killed) < 2 and lab.allowed():
        time.sleep(0.01)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    before = epochs_of(killed)
    resumed = lab.osteo("train", f"resume={killed.directory}", **more)
    if resumed.code or killed.state != "done":
        yield Row("kill and resume", "FAIL", ended(resumed, "resumed"))
        return
    row = equal("kill and resume", whole, killed)
    figures = f"killed after {before} of 6 epochs; {row.figures}"
    yield row._replace(figures=figures, verdict=row.verdict if was_running else "NOTE")


def epochs_of(run: Run) -> int:
    """How many rows its curves have."""
    path = run.directory / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def little_memory(lab: Lab) -> Iterator[Row]:
    """What is said where memory runs out, and the batch that is halved until it fits."""
    size = 16 if lab.is_small else 96
    settings = [f"model.backbone={lab.one}", "trainer.max_epochs=1", f"data.batch_size={size}", *WATCH]
    done = lab.osteo(*lab.training("full", *settings), OSTEO_MEMORY="3")
    line = next((line for line in done.text.splitlines() if "memory ran out" in line), done.last_line)
    is_told = done.code != 0 and f"use data.batch_size={size // 2}" in line and "Traceback" not in done.text
    yield Row("out of memory, told in a line", "PASS" if is_told else "FAIL", f"exit {done.code}: {line[:240]}")
    done = lab.osteo(*lab.training("halved", *settings, "trainer.halve_batch=true"), OSTEO_MEMORY="3")
    sizes = re.findall(r"begins anew with (\d+)", done.text)
    yield Row(
        "halve_batch", "PASS" if done.code == 0 and sizes else "FAIL",
        f"{ended(done, 'trained')}; batches of {', '.join([str(size), *sizes])}",
    )  # fmt: skip


def clipping(lab: Lab) -> Iterator[Row]:
    """Gradients are clipped in every precision."""
    precisions = ["bf16-mixed", "32-true"] if lab.is_small else ["bf16-mixed", "16-mixed", "32-true"]
    done = lab.sweep("clipped", f"model.backbone={lab.one}", f"trainer.precision={','.join(precisions)}",
        "trainer.gradient_clip_val=1.0", "trainer.max_epochs=1", "trainer.limit_train_batches=3",
    )  # fmt: skip
    states = [f"{name} {run.state}" for name, run in zip(precisions, runs_of(lab.folder / "clipped"), strict=False)]
    yield Row("clipped gradients", "PASS" if done.code == 0 else "FAIL", f"{', '.join(states)}; {ended(done, 'all')}")


def answers(lab: Lab) -> Iterator[Row]:
    """One picture, one logit: that of training's test, of evaluate and of predict."""
    run = next((run for run in runs_of(lab.folder / "sweep") if run.state == "done"), None)
    if run is None:
        yield Row("evaluate and predict", "SKIP", "no run to ask")
        return
    known = run.read_table("predictions.csv").query("split == 'test'").set_index("image_id")["logit"]
    done = lab.osteo("evaluate", f"ckpt={run.directory}", *lab.data, f"output_dir={lab.folder / 'evaluated'}")
    if done.code == 0:
        asked = pd.read_csv(lab.folder / "evaluated" / "predictions.csv").set_index("image_id")["logit"]
        yield compared("evaluate", done, known, asked)
    else:
        yield Row("evaluate", "FAIL", ended(done, ""))
    paths = run.read_table("manifest.csv").set_index("image_id")["path"].loc[known.index[:8]]
    folder = lab.folder / "pictures"
    folder.mkdir()
    names = {}
    for number, (image, path) in enumerate(paths.items()):
        source = next((lab.folder / "cache").rglob(str(path)))
        names[image] = shutil.copy(source, folder / f"{number}{source.suffix}").name
    done = lab.osteo("predict", f"ckpt={run.directory}", f"input={folder}", f"output_dir={lab.folder / 'predicted'}")
    if done.code == 0:
        asked = pd.read_csv(lab.folder / "predicted" / "predictions.csv").set_index("file")["logit"]
        yield compared("predict", done, known.loc[paths.index].rename(names), asked)
    else:
        yield Row("predict", "FAIL", ended(done, ""))


def compared(check: str, done: Done, known: "pd.Series[float]", asked: "pd.Series[float]") -> Row:
    """Logits of the same pictures."""
    gap = float((known - asked.reindex(known.index)).abs().max(skipna=False))
    return Row(
        check, "PASS" if gap < CLOSE else "FAIL",
        f"{ended(done, 'answered')}; a logit differs from that of training's test by up to {gap:.1e} (less than"
        f" {CLOSE:.0e})",
    )  # fmt: skip


def reckoning(lab: Lab) -> Iterator[Row]:
    """The sweep of the paper's three backbones, five folds and two seeds, from its parts."""
    jobs = lab.jobs.get(lab.batches[0], [])
    check = f"a sweep of {len(lab.backbones) * RUNS} runs"
    if len(jobs) < 2 * len(lab.backbones):
        yield Row(check, "SKIP", "its parts were not measured")
        return
    total, words = lab.around, []
    for first, again in zip(jobs[::2], jobs[1::2], strict=True):
        total += first.fixed + (RUNS - 1) * again.fixed + RUNS * EPOCHS * again.epoch
        parts = ", ".join(
            f"{name} {again.part(part):.3f}"
            for name, part in (("validation", "validation"), ("checkpoint and record", "rest"))
        )
        words.append(
            f"{again.backbone}: an epoch {again.epoch:.3f} s (step {1e3 * again.step:.1f} ms, {parts}), beside epochs"
            f" {first.fixed:.1f} s the first job and {again.fixed:.1f} s another"
        )
    at_once = total / max(1.0, lab.speed_up or 1.0)
    verdict = "NOTE" if lab.is_small else "PASS" if at_once <= LONGEST else "FAIL"
    beside = f", {at_once:.0f} s {SIDE_BY_SIDE} at a time" if lab.speed_up else ""
    yield Row(
        check, verdict,
        f"{EPOCHS} epochs each: {total:.0f} s one after the other{beside} (goal {LONGEST:.0f}); "
        + "; ".join(words) + f"; {lab.around:.1f} s before the first job and after the last",
    )  # fmt: skip
