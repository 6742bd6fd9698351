"""Loads a checkpoint as safetensors does: copies each tensor out of the mapped file, in file order.

Prints the seconds. Without that library, whose import takes longer in an emulated machine than many
a load.
"""

import glob
import json
import mmap
import struct
import sys
import time


def main() -> None:
    """Load the directory that the first argument names."""
    began = time.monotonic()
    for path in sorted(glob.glob(f"{glob.escape(sys.argv[1])}/*.safetensors")):
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            (length,) = struct.unpack_from("<Q", mapped)
            first = 8 + length
            header = json.loads(mapped[8:first])
            header.pop("__metadata__", None)
            for begin, end in sorted(tensor["data_offsets"] for tensor in header.values()):
                mapped[first + begin : first + end]
    print(time.monotonic() - began)


if __name__ == "__main__":
    main()
