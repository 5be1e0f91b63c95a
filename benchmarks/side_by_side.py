"""Two trainings side by side on the CPU against the same two one after the other.

OpenMP's threads wait for each other after every operation, and by default they wait by spinning: two processes that
know nothing of each other then keep the cores from each other. `osteo` has them sleep (OMP_WAIT_POLICY=PASSIVE), and
hydra/launcher=processes shares the cores out. Rounds of all settings are interleaved, so that whatever else runs on the
machine meets all of them.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.noise import note, python

BACKBONE, SIZE, BATCH, STEPS, ROUNDS = "resnet18", 64, 16, 30, 5
WAITS = {
    "spinning (OpenMP's default)": {},
    "asleep (osteo)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread each (hydra/launcher=processes)": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
}
PROCESSORS = {
    "bf16-mixed": {},
    "32-true": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},  # as one without AVX-512
}


def work(precision: str, steps: int) -> None:
    """In a process: says that it is ready, trains when it is told to, and prints seconds and CPU seconds of a step."""
    from benchmarks.bare import WARM_UP, Bare

    bare = Bare(BACKBONE, SIZE, BATCH)
    bare.half = precision == "bf16-mixed"
    for _ in range(WARM_UP):
        bare.step()
    print("ready", flush=True)
    input()
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        bare.step()
    print(json.dumps([(time.perf_counter() - start) / steps, (time.process_time() - start_cpu) / steps]))


def together(count: int, precision: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and CPU seconds of a step of so many trainings that begin at once, the slowest's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [*python("benchmarks.side_by_side"), precision, str(STEPS)]
    started = [
        subprocess.Popen(
            command, env=kept | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) for _ in range(count)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in started]
    return max(seconds for seconds, _ in found), max(cpu for _, cpu in found)


def measure() -> list[dict]:
    """One row per arithmetic and way to wait; the ratios are of the medians of the rounds."""
    rows = []
    for precision, processor in PROCESSORS.items():
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(ROUNDS):
            for name, environment in WAITS.items():
                for count in (1, 2):
                    found.setdefault((name, count), []).append(together(count, precision, processor | environment))
        first = next(iter(WAITS))
        middle = {key: [statistics.median(values) for values in zip(*each, strict=True)] for key, each in found.items()}
        for name in WAITS:
            (alone, _), (beside, cpu) = middle[name, 1], middle[name, 2]
            rows.append(
                {
                    "arithmetic": precision,
                    "threads wait": name,
                    "alone, s a step": round(alone, 4),
                    "alone / alone spinning": round(alone / middle[first, 1][0], 2),
                    "side by side / one after the other": round(beside / (2 * alone), 2),
                    "side by side / spinning so": round(beside / middle[first, 2][0], 2),
                    "CPU s a step, side by side": round(cpu, 4),
                    "noise": note(*([seconds for seconds, _ in found[name, count]] for count in (1, 2))),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
