"""Sharded checkpoints: written by all ranks, loaded under any plan (`docs/checkpoints.md`)."""

from galvatron.checkpoints.loading import Checkpoint, load
from galvatron.checkpoints.saving import check_arguments, save

__all__ = ["Checkpoint", "check_arguments", "load", "save"]
