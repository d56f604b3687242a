"""`transformers.Trainer` on compiled programs (`docs/trainer.md`). Needs the packages of the extra `trainer`."""

from galvatron.trainer.arguments import GalvatronArguments
from galvatron.trainer.checkpoints import last_checkpoint
from galvatron.trainer.trainer import GalvatronTrainer

__all__ = ["GalvatronArguments", "GalvatronTrainer", "last_checkpoint"]
