"""A stand-in for an inference server: heavy imports, then a lazily loaded safetensors checkpoint.

environment.py installs it into a separate environment, whose files are cold when a run starts, so
it imports nothing from this repository. `prefetch-bench-server [DIRECTORY]` prints one JSON
document.
"""

import glob
import importlib
import json
import os
import sys
import time
from typing import Any

# What a server imports before it opens any weights: many small modules and large libraries.
MODULES = (
    "numpy",
    "safetensors",
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "scipy.cluster",
    "scipy.fft",
    "scipy.integrate",
    "scipy.interpolate",
    "scipy.io",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.signal",
    "scipy.sparse.csgraph",
    "scipy.sparse.linalg",
    "scipy.spatial",
    "scipy.special",
    "scipy.stats",
)
_MAY_BE_MISSING = "torch"
_PAGE_BYTES = 4096


def main() -> None:
    """Import, load the folders on the command line, and print how long each took."""
    began = time.monotonic()
    missing = _import_all()
    imported = time.monotonic()
    torch = None if missing else sys.modules["torch"]
    size_bytes = checksum = 0
    for directory in sys.argv[1:]:
        for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*.safetensors"))):
            size, total = _load(path, torch)
            size_bytes += size
            checksum += total
    document = {
        "import_seconds": imported - began,
        "load_seconds": time.monotonic() - imported,
        "size_bytes": size_bytes,  # of the tensors
        "checksum": checksum,
        "missing": missing,
    }
    print(json.dumps(document))


def _import_all() -> list[str]:
    missing = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] != _MAY_BE_MISSING:
                raise
            missing.append(name)
    return missing


def _load(path: str, torch: Any) -> tuple[int, int]:
    """Return the bytes of a file's tensors, and the sum of the first byte of each of their pages.

    With torch a tensor maps the file and is read when touched; without torch it is a copy.
    """
    from safetensors import safe_open  # noqa: PLC0415 - `_import_all` measures the imports

    size_bytes = checksum = 0
    with safe_open(path, framework="numpy" if torch is None else "pt") as file:
        for name in file.offset_keys():
            tensor = file.get_tensor(name).reshape(-1)
            if torch is None:
                pages = tensor.view("uint8")[::_PAGE_BYTES].astype("int64")
            else:
                pages = tensor.view(torch.uint8)[::_PAGE_BYTES].to(torch.int64)
            size_bytes += tensor.nbytes
            checksum += int(pages.sum())
    return size_bytes, checksum


if __name__ == "__main__":
    main()
