"""Files that a command will write are tried before its work begins: nothing is computed for a folder that takes none."""

from __future__ import annotations

import tempfile
from pathlib import Path as FilePath

from diffode.errors import ArgumentError


def try_to_write(*files: FilePath, option: str = "output") -> None:
    """Raise ArgumentError unless every file can be written; what lies there already stays as it is."""
    for file in files:
        try:
            if file.exists():
                with file.open("ab"):
                    pass
            else:
                # A file beside it, which is gone at once.
                with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name[:100]}."):
                    pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(
                f"{option} {str(file)!r} can't be written: {reason}; choose a path in a writable folder"
            ) from error
