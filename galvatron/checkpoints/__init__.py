"""Sharded checkpoints: written by all ranks, loaded under any plan (`docs/checkpoints.md`)."""

from galvatron.checkpoints.loading import Checkpoint, load
from galvatron.checkpoints.saving import Saver, check_arguments

__all__ = ["Checkpoint", "Saver", "check_arguments", "load"]
