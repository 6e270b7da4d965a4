"""Training with several processes that does what one process does: ``nearfar train ... --processes 2``, or by torchrun.

`part` shares a batch out, `group` carries tensors between processes, `loss` puts the loss of a whole batch together from the
parts, `joining` meets the other processes and ends with them, `launch` starts processes on this machine. docs/distributed.md
"""

from nearfar.distributed.group import ALONE, Group, current
from nearfar.distributed.joining import joined
from nearfar.distributed.loss import add_up, in_order, loss_over_processes
from nearfar.distributed.part import Part, part_of

__all__ = [
    "ALONE",
    "Group",
    "Part",
    "add_up",
    "current",
    "in_order",
    "joined",
    "loss_over_processes",
    "part_of",
]
