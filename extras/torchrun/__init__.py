"""What the processes that torchrun started tell each other. In a process alone everything here is trivial.

torchrun ends the others when one process ends; those may be waiting for it, which PyTorch reports as an error of the
network (errors.lost_peer).
"""
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist  # some builds of PyTorch have an empty one

from common.runtime.device import choose_device
from common.runtime.errors import UserError
from common.runtime.processes import LOCAL_RANK, LOCAL_WORLD_SIZE, RANK, RESTARTS, WORLD_SIZE

PATIENCE = timedelta(hours=2)  # how long a process waits for the others: one of them may be reading all images

Value = TypeVar('Value')
_group = f'restart {RESTARTS}'  # tells the claims of claim_failure apart


@contextmanager
def process_group(use_gpu: bool | str) -> Iterator[None]:
    """Inside `with` the processes can talk to each other: through Gloo, and on GPUs, each with its own, NCCL.

    `use_gpu` is USE_GPU.
    """
    global _group
    cuda = choose_device(use_gpu).type == 'cuda'
    if cuda:
        if torch.cuda.device_count() < LOCAL_WORLD_SIZE:
            raise UserError(f'torchrun --nproc-per-node={LOCAL_WORLD_SIZE}: this machine has '
                            f'{torch.cuda.device_count()} GPUs, and each process needs its own')
        torch.cuda.set_device(LOCAL_RANK)
    dist.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo', timeout=PATIENCE,
                            store=new_store(), rank=RANK, world_size=WORLD_SIZE)
    _group = broadcast(uuid.uuid4().hex)
    yield
    largest(0)  # waits: torchrun takes one that ends early for a failure of the others
    dist.destroy_process_group()


def new_store() -> 'dist.Store':
    """A store in which the processes find each other, served by the first of them.

    torchrun's own still holds the addresses of processes that were lost, and does not say that they are.
    """
    agents, host = agent_store(), os.environ['MASTER_ADDR']
    if RANK == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        agents.set('volo/port', str(store.port))
        return store
    while True:
        port = int(agents.get('volo/port'))
        try:
            dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=1))
        except dist.DistError:  # that of a process that was lost
            time.sleep(0.1)
        else:
            return dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)


def agent_store() -> 'dist.Store':
    """The one that torchrun serves."""
    return dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
                         timeout=timedelta(seconds=10))


def broadcast(value: Value) -> Value:
    """The value that the first process has, in every process."""
    values = [value]
    dist.broadcast_object_list(values, device=torch.device('cpu'))
    return values[0]


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank."""
    values = [value] * WORLD_SIZE
    dist.all_gather_object(values, value)
    return values


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    dist.all_reduce(tensor)
    return tensor


def largest(value: float) -> float:
    """The largest value that a process has."""
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()


def claim_failure() -> bool:
    """Whether this process is the first of the run to fail, whose message is the one to print."""
    try:
        return int(agent_store().compare_set(f'volo/failed/{_group}', '', str(RANK))) == RANK
    except (RuntimeError, ValueError):  # the machine that has the store is gone
        return True
