"""How every kernel is compiled: lazily, without the GIL, and kept on disk when that is possible.

Kernels are serial. Whoever wants several cores runs one kernel over several chunks of rows
(``pgkmeans_sk.threads``); that keeps them safe in forked children and under any threading layer.

Numba's cache on disk looks at the file of the function that it compiled, and at nothing else. A
kernel would go on with the old form of a helper after an upgrade that changed only the helper's
file, and fail where a type has moved to another one. So the cache lies in a folder that is named
after all sources of kernels.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile
from numba.core.registry import cpu_target

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Of the time of a first fit, each of these saves a tenth: nobody calls a kernel from C by its
    # signature, and kernels are loops, without array expressions to be fused.
    "no_cfunc_wrapper": True,
    "no_rewrites": True,
}

# Private to Numba: without it, references are counted for nothing.
_WITHOUT_MEMORY = {"_nrt": False} if hasattr(cpu_target.options, "_nrt") else {}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` on its first call with each combination of types.

    ``error_model="numpy"`` drops the tests for division by zero, which would keep loops from being
    vectorised. ``fastmath`` stays off: the order of additions is part of the promised result.
    """
    return _compiled(function, _OPTIONS)


def kernel_without_memory(function: Callable[..., Any]) -> Any:
    """The same for a kernel that makes no array, and returns none.

    References to the arrays that it is given, and to parts of them, need no counting: the caller
    holds them. Counting took an eighth of the time of a first fit.
    """
    return _compiled(function, _OPTIONS | _WITHOUT_MEMORY)


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Numba found no folder to write to (read-only install and home): compile in each process.
        return numba.njit(**options)(function)
    with contextlib.suppress(AttributeError):  # private to Numba: it may move
        _keep_apart(compiled._cache)
    return compiled


def part(function: Callable[..., Any]) -> Any:
    """A step of a kernel: it becomes a piece of each kernel that calls it.

    A kernel that another one calls is optimised and translated by itself, and then again as a part
    of the other; a third of the time of a first fit went into that. So what is called from one or
    two places is a part. What many call, or what loses speed inside a longer function, is not.
    """
    return numba.njit(inline="always", **_OPTIONS)(function)


def lies_ready(compiled: Any, *arguments: Any) -> bool:
    """Whether a kernel is there for such arguments, in memory or on disk."""
    signature = tuple(numba.typeof(argument) for argument in arguments)
    if signature in compiled.overloads:
        return True
    with contextlib.suppress(AttributeError):  # private to Numba: it may move
        cache = compiled._cache
        key = cache._index_key(signature, compiled.targetctx.codegen())
        return key in cache._cache_file._load_index()
    return False


@functools.lru_cache(maxsize=1)
def fingerprint() -> str:
    """A hash over the names and contents of all files of kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _keep_apart(cache: Any) -> None:
    """Move the cache of a kernel into a folder of its own; it is made when something is saved."""
    locator, base = cache._impl.locator, cache._impl.filename_base
    folder = str(Path(locator._cache_path) / f"pgkmeans_sk-{fingerprint()}")
    locator._cache_path = cache._cache_path = folder
    cache._cache_file = IndexDataCacheFile(folder, base, source_stamp=fingerprint())
