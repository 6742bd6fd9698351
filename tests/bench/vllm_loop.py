"""vLLM's warming loop as a separate process: 8 threads, 16 MiB blocks, one file per task."""

import concurrent.futures
import sys

THREADS = 8
BLOCK_BYTES = 16 << 20


def _warm(path: str) -> None:
    with open(path, "rb") as file:
        while file.read(BLOCK_BYTES):
            pass


def main() -> None:
    """Warm the files named on the command line."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=THREADS) as executor:
        for future in [executor.submit(_warm, path) for path in sys.argv[1:]]:
            future.result()


if __name__ == "__main__":
    main()
