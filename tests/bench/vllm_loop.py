"""vLLM's way of warming, as a process of its own: 8 threads, 16 MiB blocks, a file per task."""

import concurrent.futures
import sys

THREADS = 8
BLOCK_BYTES = 16 << 20


def _warm(path: str) -> None:
    with open(path, "rb") as file:
        while file.read(BLOCK_BYTES):
            pass


def main() -> None:
    """Warm the files that the command line names."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=THREADS) as executor:
        for future in [executor.submit(_warm, path) for path in sys.argv[1:]]:
            future.result()


if __name__ == "__main__":
    main()
