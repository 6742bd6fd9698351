"""All files below a directory."""

import os
import stat
from collections.abc import Iterator

from prefetch_cli.base.progress import Monitor


def walk(path: str, monitor: Monitor) -> Iterator[tuple[str, OSError | None]]:
    """Yield `path`, or what is below that directory and no directory itself; links are followed.

    Sorted by name, folder by folder, each folder once. What cannot be looked at comes with its
    error; a link to nothing is left out.
    """
    pending = [path]
    seen: set[tuple[int, int]] = set()
    while pending:
        path = pending.pop()
        try:
            with monitor.waiting(path):
                status = os.stat(path)
                identity = (status.st_dev, status.st_ino)
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder and identity in seen:
                    continue  # a link that leads back
                names = sorted(os.listdir(path), reverse=True) if is_folder else []
                seen.add(identity)
        except FileNotFoundError:
            continue  # or deleted meanwhile
        except OSError as error:
            yield path, error
            continue
        pending += [os.path.join(path, name) for name in names]
        if not is_folder:
            yield path, None
