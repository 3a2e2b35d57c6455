"""Machine code of kernels: compiled once on a machine, kept in a file, loaded without Numba.

Numba and what it imports take most of a second in every process, the code itself some milliseconds: so the code is stored as
an object file, with a checksum, under a key that covers the source, the compilers and the processor. Files that another user
owns or may write are not loaded, since code could be put into them. Without a place that can be written, each process
compiles for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffode.cache_folder import folder
from diffode.errors import DiffodeError

#: Name of the function in an object file.
_NAME = "diffode_kernel"
#: Counts and addresses that a kernel takes, as ``kernels.SIGNATURE`` says.
_COUNTS, _ADDRESSES = 4, 5
_DIGEST_BYTES = 32
_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * _COUNTS, *[ctypes.c_void_p] * _ADDRESSES)
#: A declaration of a function that is not LLVM's own, in its language: type, name, and arguments.
_DECLARATION = re.compile(r"^declare (.+?) @((?!llvm\.)[\w.$]+)\((.*)\)[^()]*$", re.MULTILINE)

Kernel = Callable[..., int]

_lock = threading.Lock()
#: What a loaded function lives in, for as long as the process does.
_alive: list[Any] = []
#: A kernel's module in this package, and what its function ``kernel`` is given.
Kind = tuple[str | int | bool, ...]
_kernels: dict[Kind, Kernel] = {}


def _renew_lock() -> None:
    """A forked process has none of the threads that may have held the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def kernel(*kind: str | int | bool) -> Kernel:
    """The kernel of a kind, such as ``("kernels", 2, False, True)``; it releases the interpreter's lock while it runs."""
    if kind not in _kernels:
        # Two threads that ask for the same kernel wait for one compilation.
        with _lock:
            if kind not in _kernels:
                _kernels[kind] = _kernel(kind)
    return _kernels[kind]


def _kernel(kind: Kind) -> Kernel:
    try:
        key = _key(kind)
        code = _read(key)
        if code is None:
            function, code = _compiled(kind)
            if code is None:
                return function
            _write(key, code)
        # What was compiled just now is loaded too, so that every process runs the same machine code.
        return _loaded(code)
    except Exception as error:
        raise DiffodeError(
            f"the kernels of mixtures can't be compiled here ({error}); set DIFFODE_NATIVE=0 in the environment to run in torch"
        ) from error


def _key(kind: Kind) -> str:
    import llvmlite.binding as llvm

    compilers = [sys.version, *(importlib.metadata.version(name) for name in ("numba", "llvmlite"))]
    machine = [llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    source = [file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(repr((kind, compilers, machine, source)).encode()).hexdigest()


def _compiled(kind: Kind) -> tuple[Kernel, bytes | None]:
    """A kernel compiled by Numba, and its machine code, if that stands on its own."""
    import llvmlite.binding as llvm
    import numba

    from diffode.native import elementary, kernels, wide

    name, *given = kind
    makers: dict[Any, Callable[..., Any]] = {"kernels": kernels.kernel, "wide": wide.kernel}
    written = makers[name](*given)
    made: Any = numba.cfunc(kernels.SIGNATURE, **elementary.SETTINGS)(written)
    _alive.append(made)
    compiled = _PROTOTYPE(made.address)
    # No kernel raises or allocates, so that Numba's functions for that, which its library would have to provide, are dead.
    text = _DECLARATION.sub(r"define internal \1 @\2(\3) { unreachable }", made.inspect_llvm())
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if function.name == made.native_name:
            function.name = _NAME
        elif not function.is_declaration:
            function.linkage = "internal"
        elif not function.name.startswith("llvm."):
            return compiled, None
    return compiled, bytes(_machine().emit_object(module))


def _loaded(code: bytes) -> Kernel:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _alive.append(engine)
    return _PROTOTYPE(engine.get_function_address(_NAME))


def _machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic", jit=True)


def _files(key: str) -> list[Path]:
    """Where machine code may lie: beside the compiled Python of this package, or in the cache where that can't be written."""
    return [place / f"{key}.o" for place in (Path(__file__).parent / "__pycache__", folder() / "native")]


def _read(key: str) -> bytes | None:
    """The machine code stored under a key; None if there is none, it is damaged, or others may have written it."""
    for place in _files(key):
        with contextlib.suppress(OSError), place.open("rb") as file:
            held = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (held.st_uid not in (0, os.getuid()) or held.st_mode & 0o022):
                continue
            content = file.read()
            digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if code and hashlib.sha256(key.encode() + code).digest() == digest:
                return code
    return None


def _write(key: str, code: bytes) -> None:
    """Store machine code in the first place that can be written, if there is one."""
    for place in _files(key):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
        except OSError:
            continue
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(key.encode() + code).digest() + code)
            os.replace(temporary, place)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
        else:
            return
