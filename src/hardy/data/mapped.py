"""Arrays in ``.npz`` files that are not compressed, read in place: only what is asked for comes from the disk."""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["StoredArray", "find_array"]

LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip file: 26 bytes, the lengths of its name and its extras


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in a file.

    Attributes:
        path: The file.
        offset: Of its first number, in bytes.
        shape: Its shape, in C order.
        dtype: Of its numbers.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def open(self) -> npt.NDArray[np.generic]:
        """Map the array into memory, read-only.

        Raises:
            OSError: there is no such file.
            ValueError: the file is shorter than the array.
        """
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def find_array(path: Path, member: str) -> StoredArray | None:
    """Find an array in a ``.npz`` file; None if it is compressed, encrypted, or in Fortran order.

    Args:
        path: The file.
        member: Name of the array with ``.npy``.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile, struct.error: no such file or member, or it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        file.seek(name + extra, 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        offset = file.tell()
    if offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64)) > path.stat().st_size:
        raise ValueError(f"{member} is cut off")
    return None if fortran or dtype.hasobject else StoredArray(path, offset, shape, dtype)
