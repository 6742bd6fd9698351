"""One rank of a tensor-parallel server: its slices of every tensor, read lazily from the files."""

import glob
import os
import sys
import time

import safetensors.numpy  # noqa: F401 - else the first slice would pay for the import
from safetensors import safe_open


def main() -> None:
    directory, rank, ranks, go = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    print("ready", flush=True)
    while not os.path.exists(go):
        time.sleep(0.005)
    loaded = load(directory, rank, ranks)
    with open("/proc/uptime", encoding="ascii") as uptime:
        print(loaded, uptime.read().split()[0])


def load(directory: str, rank: int, ranks: int) -> int:
    """Copy a rank's rows of every tensor, in load order, and return their bytes."""
    loaded = 0
    for path in sorted(glob.glob(f"{directory}/*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                rows = part.get_shape()[0]
                loaded += part[rows * rank // ranks : rows * (rank + 1) // ranks].nbytes
    return loaded


if __name__ == "__main__":
    main()
