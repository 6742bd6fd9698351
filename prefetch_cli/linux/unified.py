"""Memory that CPU and GPU share: the page cache takes there what the GPU needs for the model.

Known by PCI numbers (pci.ids), the product name of the firmware, and the device tree. Read, not
measured.
"""

import glob
import os

from prefetch_cli.linux import procfs
from prefetch_cli.linux.procfs import below

_GPU_VENDORS = {"0x10de", "0x1002"}
_DISPLAY, _ACCELERATOR = "0x03", "0x12"  # classes of PCI devices
_SHARING = {
    ("0x10de", "0x2e12"): "NVIDIA GB10",
    ("0x1002", "0x74a0"): "AMD Instinct MI300A",
}
# The firmware sets a part of the memory apart for this one: it shares only if that is small.
_DIVIDED = {("0x1002", "0x1586"): "AMD Strix Halo"}
_PRODUCTS = ("DGX Spark", "Jetson")
_TREE = "/proc/device-tree"
_SOC = "/sys/devices/soc0"  # where a container hides the device tree


def shared_with_gpu(root: str = "/") -> str | None:
    """Return the name of the hardware if its GPU has no memory of its own, else None.

    A machine that has another GPU besides, with its own memory, loads models there. Tests give
    another `root`, with `proc` and `sys` below it. Never raises.
    """
    found = list(_gpus(root))
    if None in found:
        return None
    return next(iter(found), None) or _by_product(root) or _by_tree(root)


def _gpus(root: str) -> list[str | None]:
    """Return the name of each GPU that shares memory, None for each that has its own."""
    found: list[str | None] = []
    for path in sorted(glob.glob(below(glob.escape(root), "/sys/bus/pci/devices/*"))):
        vendor = _text(path, "vendor")
        if vendor in _GPU_VENDORS and _text(path, "class").startswith((_DISPLAY, _ACCELERATOR)):
            key = vendor, _text(path, "device")
            divided = _number(path, "mem_info_gtt_total") > _number(path, "mem_info_vram_total")
            found.append(_SHARING.get(key) or (_DIVIDED.get(key) if divided else None))
    return found


def _by_product(root: str) -> str | None:
    name = _text(below(root, "/sys/class/dmi/id"), "product_name").replace("_", " ")
    return name if any(product in name for product in _PRODUCTS) else None


def _by_tree(root: str) -> str | None:
    kinds = _text(below(root, _TREE), "compatible").split("\0")
    family = _text(below(root, _SOC), "family")
    if not any(kind.startswith("nvidia,tegra") for kind in kinds) and family != "Tegra":
        return None
    name = _text(below(root, _TREE), "model") or _text(below(root, _SOC), "machine")
    return name.rstrip("\0") or "NVIDIA Tegra"


def _text(path: str, name: str) -> str:
    return procfs.text(os.path.join(path, name))


def _number(path: str, name: str) -> int:
    text = _text(path, name)
    return int(text) if text.isascii() and text.isdecimal() else 0
