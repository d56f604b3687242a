"""Communication: the calls (`library`), what is on record of them (`message`, `activity`), and what measures them
(`clock`, `counter`)."""

from galvatron.runtime.comm.activity import now
from galvatron.runtime.comm.library import (
    Handle,
    Waitable,
    all_gather,
    all_ranks,
    all_reduce,
    all_to_all,
    broadcast,
    broadcast_object,
    exchange,
    gather_objects,
    gather_objects_on_first,
    receive,
    reduce_scatter,
    send,
    start,
)
from galvatron.runtime.comm.message import PIPELINE, Chunk, Message, Place
from galvatron.runtime.comm.silent import SilentGroup

__all__ = [
    "PIPELINE",
    "Chunk",
    "Handle",
    "Message",
    "Place",
    "SilentGroup",
    "Waitable",
    "all_gather",
    "all_ranks",
    "all_reduce",
    "all_to_all",
    "broadcast",
    "broadcast_object",
    "exchange",
    "gather_objects",
    "gather_objects_on_first",
    "now",
    "receive",
    "reduce_scatter",
    "send",
    "start",
]
