"""Convert a checkpoint: its stages in order. Measuring what it cost is `loss`."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from archport.contract import InputError
from archport.contract.arguments import checked
from archport.contract.errors import of_file
from archport.contract.sizes import format_bytes
from archport.conversion import folder
from archport.conversion.settings import Settings
from archport.conversion.targets import FLOATING, targets_of
from archport.conversion.writing import size_of, write_file
from archport.loading import describe


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote.

    Args:
        source: the name of what was converted.
        out: the folder.
        quantised: tensors that were quantised.
        dense: tensors of two or more dimensions that stayed as they were.
        before: bytes of the source's weights.
        after: bytes of the output's.
        copied: files that came along.
        resumed: tensors that an earlier process had written.
    """

    source: str
    out: Path
    quantised: int
    dense: int
    before: int
    after: int
    copied: tuple[str, ...]
    resumed: int


@checked
def convert(
    name: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    adapter: str | Path | None = None,
) -> Conversion:
    """Write a checkpoint again as `settings` says, going on where an interrupted call with the same arguments stopped.

    Memory holds a few chunks of 8 MB, whatever the sizes of files and tensors.

    Args:
        name: a folder, hub id or alias.
        out: a folder that is new or empty, or what an interrupted conversion left.
        progress: is told (tensors that are written, of how many).
        adapter: one whose sums with the matrices are written, as `load` takes it.

    Raises:
        InputError: the folder holds something else, the disk has too little space, or the settings fit no tensor.
        CheckpointError: the source is damaged or quantised, or has matrices that can't be quantised.
        ModelNotFound, ClaimError: see `load`.
    """
    place = Path(out)
    about = describe(name, revision=revision, weights=True, adapter=adapter)
    if settings.dtype is not None and (why := about.spec.dtypes_refused.get(settings.dtype)):
        raise InputError(f"dtype={settings.dtype!r} is refused for {about.spec.arch}: {why}")
    targets = targets_of(about, settings)
    outputs = folder.outputs_of(targets)
    sizes = {output.file: size_of(output.targets) for output in outputs}
    checkpoint = about.checkpoint
    done = folder.begin(place, checkpoint, settings)
    with _alone(place):
        weights = place / checkpoint.body
        weights.mkdir(parents=True, exist_ok=True)
        missing = sum(size for file, size in sizes.items() if not done.get(file))
        if missing > (free := shutil.disk_usage(place).free):
            raise InputError(
                f"{place}: the output needs {format_bytes(missing)}; the disk has {format_bytes(free)} left"
            )
        resumed = written = 0
        for output in outputs:
            path, part = weights / output.file, weights / f"{output.file}.part"
            count = done.get(output.file, 0) if part.exists() or path.exists() else 0
            resumed += count
            if not path.exists():

                def note(index: int, file: str = output.file, before: int = written) -> None:
                    folder.note(place, file, index)
                    if progress is not None:
                        progress(before + index, len(targets))

                if count < len(output.targets):
                    with of_file(part):
                        write_file(checkpoint.weights_folder, part, output.targets, count, note)
                os.replace(part, path)
            written += len(output.targets)
        copied = folder.copy_files(checkpoint, place)
        folder.finish(checkpoint, place, outputs, settings, sum(sizes.values()))
    return Conversion(
        checkpoint.name,
        place,
        sum(target.packed is not None for target in targets),
        sum(target.packed is None and len(target.shape) > 1 and target.dtype in FLOATING for target in targets),
        checkpoint.weight_bytes,
        sum(sizes.values()),
        tuple(copied),
        resumed,
    )


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other conversions out of a folder; file systems of a network may have no locks."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process converts into {place} now; wait for its end, or stop it") from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
