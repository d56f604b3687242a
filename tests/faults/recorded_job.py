"""A job for `torchrun` that trains on numbered samples, saves often, goes on where it was, and records what its loader
gives and what comes of it.

Arguments: FOLDER PLAN EPOCHS [KIND]; see `small.Words`
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch

from tests.data.small import Ragged, compiled, numbers

SAMPLES, BATCH, EVERY = 200, 8, 4


def main() -> None:
    folder, plan, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    kind = sys.argv[4] if len(sys.argv) > 4 else ""
    torch.set_num_threads(1)
    program = compiled(plan, kind, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(program.optimizer, 0.999)
    loader = program.dataloader(Ragged(SAMPLES), batch_size=BATCH, shuffle=True, workers=1)
    found = program.load(folder / "checkpoints", missing_ok=True)
    if found is not None:
        scheduler.load_state_dict(found.extra["scheduler"])
    step = 0 if found is None else found.step
    record = os.open(folder / f"record.{program.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while loader.epoch < epochs:
        for part in loader:
            loss = float(program.train_step(part))
            step += 1
            line = {"step": step, "epoch": int(part.origin.split()[-1]), "samples": numbers(part), "loss": loss.hex()}
            os.write(record, f"{json.dumps(line)}\n".encode())
            scheduler.step()
            if step % EVERY == 0:
                state = {"scheduler": scheduler.state_dict()}
                program.save(folder / "checkpoints", step=step, extra=state, background=True)


if __name__ == "__main__":
    main()
