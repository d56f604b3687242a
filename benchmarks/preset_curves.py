"""What a hardware profile measured on a device, as the curves of the preset of such a device.

    python benchmarks/preset_curves.py benchmarks/results/gpu_h100/profile.json h100-80g

writes `galvatron/ir/measured/h100-80g.json`, a row on each line. The profile is one of `make gpu-check`, or of
`galvatron profile hardware`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from galvatron.ir.device import Measured
from galvatron.ir.files import write_text
from galvatron.ir.presets import PRESETS
from galvatron.profiler.clusters import cluster_in

TABLES = ("products", "moving", "attention")
FOLDER = Path(__file__).parent.parent / "galvatron" / "ir" / "measured"


def written(measured: Measured) -> str:
    """The document: tables of names with their rows."""
    tables: list[str] = []
    for table in TABLES:
        names = [
            f"  [{json.dumps(name)}, [\n"
            + ",\n".join(f"   {json.dumps(list(map(_short, row)))}" for row in rows)
            + "\n  ]]"
            for name, rows in getattr(measured, table)
        ]
        tables.append(f' "{table}": [\n' + ",\n".join(names) + "\n ]")
    return "{\n" + ",\n".join(tables) + "\n}\n"


def _short(number: float) -> float | int:
    """Sizes as they are; seconds with as many digits as they are certain."""
    return int(number) if float(number).is_integer() else float(f"{number:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("profile", type=Path, help="the JSON document of one hardware profile")
    parser.add_argument("preset", choices=sorted(PRESETS), help="the device that it was taken on")
    arguments = parser.parse_args()
    path = FOLDER / f"{arguments.preset}.json"
    write_text(path, written(cluster_in(arguments.profile).device.measured))
    print(path)


if __name__ == "__main__":
    main()
