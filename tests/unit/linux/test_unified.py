"""Memory that CPU and GPU share, in crafted trees: no such machine was at hand."""

from pathlib import Path

import pytest

from prefetch_cli.linux.memory import measure
from prefetch_cli.linux.unified import shared_with_gpu

MIB = 1024 * 1024
GB10 = {"vendor": "0x10de", "device": "0x2e12", "class": "0x030000"}
MI300A = {"vendor": "0x1002", "device": "0x74a0", "class": "0x120000"}
STRIX_HALO = {"vendor": "0x1002", "device": "0x1586", "class": "0x038000"}
H100 = {"vendor": "0x10de", "device": "0x2330", "class": "0x030200"}
ASPEED = {"vendor": "0x1a03", "device": "0x2000", "class": "0x030000"}  # a server's console
BRIDGE = {"vendor": "0x10de", "device": "0x22d1", "class": "0x060400"}
SOUND = {"vendor": "0x10de", "device": "0x22e8", "class": "0x040300"}


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def pci(*devices: dict[str, str]) -> dict[str, str]:
    return {
        f"sys/bus/pci/devices/0000:0{number}:00.0/{name}": f"{text}\n"
        for number, device in enumerate(devices)
        for name, text in device.items()
    }


def vram(total_mib: int, shared_mib: int) -> dict[str, str]:
    return {
        **STRIX_HALO,
        "mem_info_vram_total": str(total_mib * MIB),
        "mem_info_gtt_total": str(shared_mib * MIB),
    }


DMI = "sys/class/dmi/id/product_name"
TREE = "proc/device-tree/compatible"
MODEL = "proc/device-tree/model"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, None),
        (pci(BRIDGE, GB10), "NVIDIA GB10"),
        (pci(MI300A, MI300A, MI300A, MI300A, ASPEED), "AMD Instinct MI300A"),
        (pci(vram(512, 63_000)), "AMD Strix Halo"),
        (pci(vram(98_304, 16_000)), None),  # the firmware set most of it apart
        (pci(STRIX_HALO), None),  # its driver is not loaded
        (pci(H100, ASPEED), None),
        (pci(GB10, H100), None),  # models go to the other one
        (pci(ASPEED, SOUND), None),
        ({DMI: "NVIDIA_DGX_Spark\n"}, "NVIDIA DGX Spark"),
        ({DMI: "NVIDIA Jetson AGX Orin Developer Kit\n"}, "NVIDIA Jetson AGX Orin Developer Kit"),
        ({DMI: "NVIDIA Jetson AGX Orin Developer Kit\n", **pci(H100)}, None),
        ({DMI: "PowerEdge XE9680\n"}, None),
        (
            {
                TREE: "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
                MODEL: "NVIDIA Jetson AGX Orin\0",
            },
            "NVIDIA Jetson AGX Orin",
        ),
        ({TREE: "nvidia,tegra264\0"}, "NVIDIA Tegra"),
        ({TREE: "raspberrypi,4-model-b\0brcm,bcm2711\0"}, None),
        (
            {"sys/devices/soc0/family": "Tegra\n", "sys/devices/soc0/machine": "Jetson Thor\n"},
            "Jetson Thor",
        ),
        ({"sys/devices/soc0/family": "i.MX\n", "sys/devices/soc0/machine": "Jetson\n"}, None),
        ({TREE: "\xff\x00" * 5000, DMI: ""}, None),
        (pci({"vendor": "0x10de"}), None),
    ],
)
def test_which_hardware_shares_its_memory(
    tmp_path: Path, files: dict[str, str], name: str | None
) -> None:
    assert shared_with_gpu(write(tmp_path, files)) == name


def test_the_memory_of_such_a_machine_says_so(tmp_path: Path) -> None:
    meminfo = {"proc/meminfo": "MemTotal: 125000000 kB\nMemAvailable: 115000000 kB\n"}
    found = measure(write(tmp_path, {**meminfo, **pci(GB10)}))
    assert (found.shared_with_gpu, found.limited_by) == ("NVIDIA GB10", "host")
