"""Where the files of a data set are looked for, and the download where they are nowhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evostep.errors import InputError, reason
from evostep.lab.data.sources.cache import cache_directory


def places_of(name: str, folder: Path | None, *usual: Path) -> list[Path]:
    """Return where to look: in the given folder alone, else in `$EVOSTEP_DATA` and as usual."""
    if folder is not None:
        return [Path(folder).expanduser()]
    root = os.environ.get("EVOSTEP_DATA")
    return [*([Path(root).expanduser() / name] if root else []), *usual]


def not_found(title: str, places: Sequence[Path], correction: str) -> InputError:
    """Return the error for a data set that is in none of the places."""
    looked = f" in {', '.join(map(str, places))}" if places else ""
    return InputError(f"no {title}{looked}: {correction}")


def download(dataset: str, title: str, places: Sequence[Path], correction: str) -> Path:
    """Have torchvision download a dataset into the cache.

    Args:
        dataset: the class in `torchvision.datasets`.
        title: what an error calls it.
        places: where it was looked for, for the error.
        correction: what the error advises.

    Returns:
        The root that it is under.

    Raises:
        InputError: the download failed; the reason is quoted.
    """
    import torchvision

    root = cache_directory() / "torchvision"
    try:
        for train in (True, False):
            getattr(torchvision.datasets, dataset)(root=str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:
        why = f"the download failed ({reason(error)})"
        raise not_found(title, places, f"{why}; {correction}") from error
    return root
