"""Prints the address space in KiB that Python has taken when a module's first line runs."""

if __name__ == "__main__":
    with open("/proc/self/status", encoding="utf-8") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmPeak")))
