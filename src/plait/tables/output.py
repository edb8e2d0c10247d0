"""Output files that are whole or not there: written beside, then renamed."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from plait.errors import message


def check_output(path: str | os.PathLike[str], suffix: str | None = None) -> pathlib.Path:
    """Returns the path if a file can be written there; to be asked before the work starts.

    Args:
        path: Where a file will be written.
        suffix: The ending it must have, for example `".keras"`.

    Raises:
        ValueError: If the ending differs, or the path is a folder.
        FileNotFoundError: If its folder does not exist.
        PermissionError: If its folder cannot be written.
    """
    path = pathlib.Path(path)
    if suffix and path.suffix != suffix:
        raise ValueError(
            message(f"This output ends in {suffix}", repr(str(path)), f"Write {path.stem + suffix}")
        )
    if path.is_dir():
        raise ValueError(
            message("An output is a file", f"the folder {str(path)!r}", "Add a file name")
        )
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(
            message(
                "The folder of an output must exist",
                f"{str(path)!r}, where {str(folder)!r} is no folder",
                f"Make it first: mkdir -p {folder}",
            )
        )
    try:  # asking the system by doing it: permission bits say nothing on read-only file systems
        handle, probe = tempfile.mkstemp(prefix=".plait-", dir=folder)
    except OSError as error:
        raise PermissionError(
            message(
                "The folder of an output must be writable",
                f"{str(path)!r} ({error.strerror})",
                "Choose another folder or change its permissions",
            )
        ) from error
    os.close(handle)
    os.unlink(probe)
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a temporary path in the same folder, which becomes `path` only if nothing is raised.

    A symbolic link stays one: the file that it names is replaced.

    Example:
    >>> import pathlib, tempfile
    >>> from plait.tables import replacing
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as beside:
    ...     _ = beside.write_text("whole")
    >>> [file.name for file in folder.iterdir()], (folder / "a.txt").read_text()
    (['a.txt'], 'whole')
    """
    path = pathlib.Path(os.path.realpath(check_output(path)))
    check_output(path)
    with tempfile.TemporaryDirectory(prefix=".plait-", dir=path.parent) as folder:
        beside = pathlib.Path(folder) / path.name
        yield beside
        os.replace(beside, path)


__all__ = ["check_output", "replacing"]
