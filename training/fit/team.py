"""The processes that train one network together: who takes which share, and how their numbers become one.

A process that belongs to no group is a team of one, so that there is one code path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

Sharding = Literal["ddp", "fsdp"]
_SIOCGIFADDR = 0x8915
"""Linux's question for an interface's address, netdevice(7)."""


class Team:
    """This process's place in its group (torch.distributed's, where it was set up) and its device."""

    def __init__(self, device: torch.device | None = None) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.size = dist.get_world_size() if grouped else 1
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of every process's `values`, the same in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """Return the first process's `value` in each; it must be picklable."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, first: int, end: int) -> range:
        """Return which of `first` to `end` (not included) are this process's: every `size`th, so even to one."""
        return range(first + self.rank, end, self.size)

    def join(
        self, module: nn.Module, blocks: Iterable[nn.Module], sharding: Sharding, frozen: nn.Module | None = None
    ) -> nn.Module:
        """Return `module` such that every process's gradients are averaged: DDP, or FSDP2 with its blocks sharded.

        Its part `frozen` every process has whole, and the same from the start: nothing of it is ever sent.
        """
        if self.size == 1:
            return module
        still = {id(x) for x in (*frozen.parameters(), *frozen.buffers())} if frozen is not None else set()
        if sharding == "ddp":
            names = [name for name, x in (*module.named_parameters(), *module.named_buffers()) if id(x) in still]
            ddp: Any = DistributedDataParallel
            ddp._set_params_and_buffers_to_ignore_for_model(module, names)
            return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh, ignored_params={x for x in module.parameters() if id(x) in still})
        return module


def use_interface_of(address: str) -> None:
    """Let Gloo meet other machines on the network interface with this IPv4 address, unless GLOO_SOCKET_IFNAME is set.

    By itself it takes what the host's own name resolves to: on many machines that is the loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextlib.contextmanager
def gradients_stay_here(joined: nn.Module, apart: bool) -> Iterator[None]:
    """Keep gradients from being averaged while `apart`: they are to be added up over micro-batches first."""
    if isinstance(joined, FSDPModule):
        joined.set_requires_gradient_sync(not apart)
        yield
    elif isinstance(joined, DistributedDataParallel) and apart:
        with joined.no_sync():
            yield
    else:
        yield
