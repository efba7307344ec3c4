"""One process or many: torchrun's environment, DDP and FSDP2 of torch, and the few sums that training exchanges."""

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
    """The processes of a run, and the place of this one among them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """True for the one process that writes files."""
        return self.rank == 0


@contextlib.contextmanager
def start_world(device: str) -> Iterator[World]:
    """The processes that torchrun started, or this one alone. Device cuda becomes cuda:LOCAL_RANK.

    Raises InputError for a device that this machine or this torch does not have.
    """
    size, rank, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
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
                "Give torchrun no more processes (--nproc-per-node) than that."
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


_TORCHRUN = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))


def distribute(model: nn.Module, layers: list[nn.Module], world: World, how: str) -> nn.Module:
    """The module whose forward synchronises gradients: the model itself, DDP around it, or the model sharded layer by layer."""
    if world.size == 1:
        return model
    if how == "ddp":
        # Gradients live in DDP's buckets, not beside them; all processes have read or drawn the same weights already.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    return model


@contextlib.contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients in the last backward pass of an update only: the earlier ones add up in place."""
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
    """Let code outside `forward` read the root's weights (embeddings, head bias) of a sharded model."""
    if isinstance(module, FSDPModule):
        module.unshard()
        try:
            yield
        finally:
            module.reshard()
    else:
        yield


def all_sum(values: Tensor, world: World) -> Tensor:
    """Sum over processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def wait_for_main(world: World) -> None:
    """Go on when every process is here: what the main one wrote before is then there for all."""
    if world.size > 1:
        dist.barrier()


def gather_rows(x_BD: Tensor, rows: tuple[int, ...], world: World) -> Tensor:
    """The rows of all processes [sum(rows), D] in rank order, with gradient to each of them."""
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
        dist.all_reduce(grad)  # gloo has no reduce_scatter; the vectors are small beside the weights
        rank = dist.get_rank()
        return grad[rank * ctx.rows : (rank + 1) * ctx.rows], None


def clip_gradient(parameters: list[nn.Parameter], norm: float | None) -> Tensor:
    """Scale the gradient to at most this global L2 norm (None: leave it); returns the norm it had."""
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(total, DTensor):
        total = total.full_tensor()
    if norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, norm, total)
    return total


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, on the CPU. Every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor cut and placed as the parameter is; every process has read the same file, so none needs to send."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor.to(parameter.device)
