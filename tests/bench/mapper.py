"""What a loader pays for files that are warm: prints JSON of how long it takes to map all of them.

python mapper.py FILE...     root also learns how much lies in huge folios
"""

import json
import mmap
import os
import struct
import sys
import time

_PAGE = 4096
_HUGE_PAGES = 512
_HEAD, _TAIL = 1 << 15, 1 << 16  # of KPF_*, in Documentation/admin-guide/mm/pagemap.rst
_FRAME = (1 << 55) - 1


def main() -> None:
    """Populate a mapping of each file, then another one by touching each of its pages."""
    populating = touching = 0.0
    huge: list[int] | None = []
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            began = time.perf_counter()
            mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ).close()
            populating += time.perf_counter() - began
            with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
                began = time.perf_counter()
                mapped[::_PAGE]
                touching += time.perf_counter() - began
                huge = None if huge is None else _add(huge, path, size)
    print(
        json.dumps(
            {
                "populating_seconds": populating,
                "touching_seconds": touching,
                "huge_bytes": None if huge is None else sum(huge),
            }
        )
    )


def _add(huge: list[int], path: str, size: int) -> list[int] | None:
    """Return the list with the bytes of this mapping that lie in huge folios, None if unknown."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        lines = [line for line in maps if line.rstrip("\n").endswith(path)]
    start = int(lines[0].partition("-")[0], 16)
    try:
        with (
            open("/proc/self/pagemap", "rb", buffering=0) as pagemap,
            open("/proc/kpageflags", "rb", buffering=0) as kpageflags,
        ):
            for first in range(0, size - _HUGE_PAGES * _PAGE + 1, _HUGE_PAGES * _PAGE):
                found = os.pread(pagemap.fileno(), 8, (start + first) // _PAGE * 8)
                frame = struct.unpack("<Q", found)[0] & _FRAME
                if frame % _HUGE_PAGES:
                    continue
                raw = os.pread(kpageflags.fileno(), 8 * _HUGE_PAGES, frame * 8)
                flags = struct.unpack(f"<{len(raw) // 8}Q", raw)
                if flags[:1] and flags[0] & _HEAD and all(one & _TAIL for one in flags[1:]):
                    huge.append(_HUGE_PAGES * _PAGE)
    except OSError:
        return None
    return huge


if __name__ == "__main__":
    main()
