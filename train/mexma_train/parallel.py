"""Runs training in one process or many: torchrun's environment, torch's DDP and FSDP2, and the few sums that are exchanged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mexma_rt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class World:
    """How many processes a run has, and which one this is."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """True for the one process that writes files."""
        return self.rank == 0


@contextlib.contextmanager
def start_world(device: str) -> Iterator[World]:
    """Yield the World of the processes that torchrun started, or of this one alone; with torchrun, cuda is cuda:LOCAL_RANK.

    Raises InputError for a device that this machine or this torch does not have.
    """
    torchrun = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    size, rank, local = (int(os.environ.get(name, default)) for name, default in torchrun)
    place = torch.device(device)
    if place.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is unknown. Type cpu, cuda or cuda:N.")
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {device}: this torch ({torch.__version__}) sees no CUDA GPU. Type --device cpu.")
        place = torch.device("cuda", local if size > 1 else place.index or 0)
        if place.index >= torch.cuda.device_count():
            raise InputError(
                f"device {place}: this machine has {torch.cuda.device_count()} GPUs, numbered from 0. "
                "Give torchrun at most that many processes (--nproc-per-node)."
            )
        torch.cuda.set_device(place)
    if size == 1:
        yield World(device=place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", device_id=place if place.type == "cuda" else None)
    try:
        yield World(device=place, rank=rank, size=size)
    finally:
        dist.destroy_process_group()


def distribute(model: nn.Module, layers: list[nn.Module], world: World, how: str) -> nn.Module:
    """Return the module to train: the model itself, wrapped in DDP, or sharded layer by layer; it synchronises gradients."""
    if world.size == 1:
        return model
    if how == "ddp":
        # Gradients are views of DDP's buckets, not copies. All processes have already read or drawn the same weights.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    return model


@contextlib.contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients only in the last backward pass of an update; those of earlier passes add up in place."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


@contextlib.contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Let code outside `forward` read the root weights (embeddings, head bias) of a sharded model."""
    if isinstance(module, FSDPModule):
        module.unshard()
        try:
            yield
        finally:
            module.reshard()
    else:
        yield


def all_sum(values: Tensor, world: World) -> Tensor:
    """Sum over processes in place, and return the tensor."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def wait_for_main(world: World) -> None:
    """Wait until every process gets here: all can then read what the main one wrote before."""
    if world.size > 1:
        dist.barrier()


def gather_rows(x_BD: Tensor, rows: tuple[int, ...], world: World) -> Tensor:
    """Return the rows of all processes [sum(rows), D] in rank order, with gradient to each process."""
    most = max(rows)
    filled = F.pad(x_BD, (0, 0, 0, most - len(x_BD)))
    parts = _AllGather.apply(filled, world.size)  # type: ignore[no-untyped-call]  # apply has no types
    return torch.cat([parts[r * most : r * most + count] for r, count in enumerate(rows)])


class _AllGather(torch.autograd.Function):
    """all_gather along the rows; the backward pass sums each process's share of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)  # gloo has no reduce_scatter, and the vectors are small compared with the weights
        rank = dist.get_rank()
        return grad[rank * ctx.rows : (rank + 1) * ctx.rows], None


def clip_gradient(parameters: list[nn.Parameter], norm: float | None) -> Tensor:
    """Scale the gradient to at most this global L2 norm (None: leave it), and return the norm it had."""
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(total, DTensor):
        total = total.full_tensor()
    if norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, norm, total)
    return total


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards, on the CPU. Every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor sharded and placed as the parameter is; all processes read the same file, so none has to send."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor.to(parameter.device)
