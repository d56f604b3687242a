"""The first thing to run on a GPU: is everything right there, how fast is it, and what does the device do.

    python benchmarks/gpu.py --out DIR [--parts parity,steps] [--limit-s 650]
    python benchmarks/gpu.py --out DIR --device cpu --tiny        # the same code, in a minute, where there is no GPU

Needs one GPU, no network and nothing installed but torch and transformers: what else is missing is taken from the
wheels in `.gpu-wheels` (`make gpu-wheels`). Each part has a process and a share of the time of its own, and leaves a
JSON file in DIR that is complete after every row, so that a part that fails, hangs or is cut short spoils no other.

    parity          loss and gradients of compiled models, and all that a training script does, against eager PyTorch
    communication   every collective of the runtime on NCCL, on one rank
    hardware        the profile of the device, as `galvatron profile hardware` takes it
    steps           step time, memory and kernels of two models under several plans
    kernels         which kernels layers run and what they keep, against what the cost model says
    prediction      what `galvatron.estimate` says of the steps that were timed
    speed           step time and memory of a Llama of about 1B parameters against eager and compiled PyTorch
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WHEELS = ROOT / ".gpu-wheels"
NEEDED = ("scipy", "rich", "typer", "click", "shellingham", "markdown_it", "mdurl", "pygments")
"""Modules that a machine with torch may lack; `make gpu-wheels` brings them."""

SHARES_S = {
    "parity": 100.0,
    "communication": 20.0,
    "hardware": 100.0,
    "steps": 170.0,
    "kernels": 40.0,
    "prediction": 40.0,
    "speed": 180.0,
}
"""What each part may take of `LIMIT_S`, besides what those before it left over."""

LIMIT_S = 650.0
GRACE_S = 15.0
"""How long the last measurement of a part may go on after its time."""


@dataclass(frozen=True)
class Ended:
    """How the process of a part ended."""

    part: str
    exit_code: int | None
    """None if it was stopped since its time was over."""
    seconds: float


def run_part(part: str, arguments: argparse.Namespace, environment: dict[str, str], limit_s: float) -> Ended:
    """Runs a part in a new process; what it prints goes to this one's output and is not kept."""
    command = [sys.executable, __file__, "--part", part, "--out", str(arguments.out), "--limit-s", f"{limit_s:.0f}"]
    command += ["--device", arguments.device] + (["--tiny"] if arguments.tiny else [])
    if part == "speed":  # its contestants come and go: without holes between them more of them fit
        environment = {**environment, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    try:
        code = process.wait(limit_s + GRACE_S)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        process.kill()
        process.wait()
    return Ended(part, code, round(time.monotonic() - began, 1))


def inside_part(part: str, out: Path, device: str, tiny: bool, limit_s: float) -> None:
    """What the process of a part does."""
    import torch
    from checks import Setting
    from checks.report import Report

    report = Report(out / f"{part}.json", part, limit_s)
    setting = Setting(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"), tiny)
    report.attempt(part, importlib.import_module(f"checks.{part}").run, report, setting)
    report.finish()


def provided(folder: str) -> list[str]:
    """Unpacks the wheels of what cannot be imported here; the paths to add."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    for wheel in sorted(WHEELS.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            if {entry.partition("/")[0] for entry in packed.namelist()} & set(missing):
                packed.extractall(folder)
    still = [name for name in missing if not (Path(folder) / name).is_dir()]
    if still:
        raise SystemExit(f"{', '.join(still)} cannot be imported, and {WHEELS} has no wheel of it: make gpu-wheels")
    return [folder]


def in_turn(arguments: argparse.Namespace) -> int:
    """All parts, each in its process, and what they found as tables; 1 if anything failed."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    ended: list[Ended] = []
    with tempfile.TemporaryDirectory(prefix="galvatron-gpu-") as folder:
        paths = [str(ROOT), str(ROOT / "benchmarks"), *provided(folder), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        if arguments.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        allowed_s = 0.0
        for part in arguments.parts:
            allowed_s += SHARES_S[part] * arguments.limit_s / LIMIT_S
            left_s = min(allowed_s, arguments.limit_s) - (time.monotonic() - began)
            print(f"== {part}: {left_s:.0f} s", file=sys.stderr, flush=True)
            ended.append(run_part(part, arguments, environment, max(1.0, left_s)))
        sys.path[:0] = paths[:-1]
        from checks.tables import print_tables

        documents = {one.part: document_of(arguments.out / f"{one.part}.json") for one in ended}
        print_tables(documents)
    return verdict(ended, documents)


def document_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def verdict(ended: list[Ended], documents: dict[str, dict[str, Any]]) -> int:
    """Says what went wrong, if anything; the exit code."""
    failed = False
    for one in ended:
        document = documents[one.part]
        failures = document.get("failures", [])
        for failure in failures:
            print(f"FAILED {one.part}: {failure['name']}: {failure['error']}", file=sys.stderr)
        for skipped in document.get("skipped", []):
            print(f"no time for {one.part}: {skipped['name']}", file=sys.stderr)
        if not document.get("finished"):
            how = "took too long" if one.exit_code is None else f"ended with {one.exit_code}"
            print(f"FAILED {one.part}: its process {how}", file=sys.stderr)
        failed |= bool(failures) or not document.get("finished")
        print(f"{one.part}: {one.seconds} s", file=sys.stderr)
    return int(failed)


def parts(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in SHARES_S]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown part {unknown[0]!r}; there are {', '.join(SHARES_S)}")
    return text.split(",")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="where the JSON files go")
    parser.add_argument("--parts", type=parts, default=list(SHARES_S), help=f"of {','.join(SHARES_S)}")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for all parts together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: does it run at all")
    parser.add_argument("--part", choices=list(SHARES_S), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        inside_part(arguments.part, arguments.out, arguments.device, arguments.tiny, arguments.limit_s)
        return 0
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("there is no GPU here; `--device cpu --tiny` runs the same code")
            return 0
    return in_turn(arguments)


if __name__ == "__main__":
    sys.exit(main())
