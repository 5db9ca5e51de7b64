"""Files of torch.save, which are programs for a small machine that builds objects, read as data.

They are looked at twice. Before anything is started, `refused` reads the program of each without running it, and says by
name what it would call: so a checkpoint that came with more than tensors is passed over for an older one. Then `load` is
torch's own `weights_only`, which runs no other calls than those.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from rlpost.plain_files import opened, shown

# What torch.save writes of tensors and plain data.
TENSORS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
    }
)
STORAGE = re.compile(r"torch\.[A-Z][A-Za-z0-9]*Storage|torch\.(b?float|u?int|complex)\d+|torch\.bool")
# What DeepSpeed keeps beside them: where a parameter lies in a flat tensor, which stage it is, and the scale of a loss.
DEEPSPEED = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
# Those that put values together, and `GLOBAL`, which names what is called, in one place where it can be read. Others name
# it by what was computed before (STACK_GLOBAL, INST, EXT1), which torch.save does not write.
OPCODES = re.compile(
    "APPENDS?|BIN(FLOAT|GET|INT[12]?|PERSID|PUT|UNICODE)|BUILD|EMPTY_(DICT|LIST|SET|TUPLE)|GLOBAL|LONG1|LONG_BIN(GET|PUT)|"
    "MARK|NEW(FALSE|OBJ|TRUE)|NONE|PROTO|REDUCE|SETITEMS?|SHORT_BINSTRING|STOP|TUPLE[123]?"
)
# Far above what a model of 200,000 tensors needs; a few bytes of a program can take a hundred times as much memory.
PROGRAM_BYTES = 64 * 2**20
DIRECTORY_BYTES = 64 * 2**20


def refused(path: Path) -> str | None:
    """Why a file is not loaded, naming what it would call; None where it is tensors and plain data.

    Reads the list of its entries and its program, and no tensor.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    with opened(path) as file:
        try:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                return _called(_program(archive, path.stat().st_size))
        except (zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError, EOFError) as error:
            return f"it is not a file of torch.save as it writes them now ({error}), and other kinds could run code"
        except ValueError as error:
            return str(error)


def load(path: Path, allowed: tuple[Any, ...] = (), map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What `torch.save` wrote, if it is tensors and plain data.

    Args:
        allowed: the classes named in `DEEPSPEED`, where they may be in it.
        mmap: leave tensors on the disk until they are read.

    Raises:
        ValueError: it would call something else, which is named.
    """
    import torch

    if why := refused(path):
        raise ValueError(f"{path}: {why}")
    with torch.serialization.safe_globals(list(allowed)):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)


def _check_directory(file: IO[bytes]) -> None:
    """Bound the list of entries, which is read whole and takes twenty times its size."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 22))
    tail = file.read(22)
    if len(tail) < 22 or tail[:4] != b"PK\5\6":
        raise zipfile.BadZipFile("no list of entries at its end")
    size = struct.unpack_from("<L", tail, 12)[0]
    if size == 0xFFFFFFFF:  # in the wider record before it
        file.seek(max(0, end - 22 - 20 - 56))
        wide = file.read(56)
        if wide[:4] != b"PK\6\6":
            raise zipfile.BadZipFile("no list of entries at its end")
        size = struct.unpack_from("<Q", wide, 40)[0]
    if size > DIRECTORY_BYTES:
        raise ValueError(f"its list of entries has {size} bytes, more than the {DIRECTORY_BYTES} that it may")
    file.seek(0)


def _program(archive: zipfile.ZipFile, size: int) -> bytes:
    """The pickle of an archive in which nothing is compressed, twice there, or on top of something else."""
    entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
        raise ValueError("its entries are compressed, which torch.save never does")
    if sum(e.file_size for e in entries) > size:
        raise ValueError("its entries are larger than it is")
    if len({e.filename.lower() for e in entries}) != len(entries):
        raise ValueError("two of its entries have one name")
    programs = [e for e in entries if e.filename.rpartition("/")[2].lower().endswith(".pkl")]
    if len(programs) != 1 or programs[0].filename.count("/") != 1 or not programs[0].filename.endswith("/data.pkl"):
        there = ", ".join(shown(e.filename) for e in programs[:3]) or "none"
        raise ValueError(f"it must have one program, data.pkl, and has: {there}")
    if programs[0].file_size > PROGRAM_BYTES:
        raise ValueError(f"its data.pkl has {programs[0].file_size} bytes, more than the {PROGRAM_BYTES} that it may")
    return archive.read(programs[0])


def _called(program: bytes) -> str | None:
    try:
        opcodes = list(pickletools.genops(program))
    except ValueError as error:
        return f"its pickle is cut off or damaged: {error}"
    for opcode, argument, _ in opcodes:
        if not OPCODES.fullmatch(opcode.name):
            return f"its pickle has {opcode.name}, which torch.save does not write, and could run code"
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".", 1)
            if name not in TENSORS | DEEPSPEED and not STORAGE.fullmatch(name):
                return f"it calls {shown(name)}, which is not among what a checkpoint holds"
    return None
