"""Which of the processes of a run this one is, as torchrun says; without torchrun there is one. No PyTorch here."""
import os

LAUNCHED = 'TORCHELASTIC_RUN_ID' in os.environ  # by torchrun


def _number(name: str, alone: int) -> int:
    return int(os.environ[name]) if LAUNCHED else alone


RANK, WORLD_SIZE = _number('RANK', 0), _number('WORLD_SIZE', 1)                          # of all processes
LOCAL_RANK, LOCAL_WORLD_SIZE = _number('LOCAL_RANK', 0), _number('LOCAL_WORLD_SIZE', 1)  # of those on this machine
RESTARTS = _number('TORCHELASTIC_RESTART_COUNT', 0)                                      # after a process was lost
