"""Peak memory of one fit beyond the data, taken in a child process of its own.

The kernel's high-water mark of the resident set (VmHWM) is the honest choice: a sampling thread
misses short peaks and is starved while a kernel holds the interpreter lock, and in the benchmark's
own process the pages that earlier libraries left behind would hide the next one's. In the child
the data is loaded, the library warmed up (so imports and compiled code do not count), freed pages
are handed back, the mark is reset, and then one fit runs. ``ru_maxrss`` shows the same mark, but
a child inherits its parent's value across exec; so it is only the fall-back where /proc is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import data
from benchmarks.peers import PEERS
from benchmarks.warm_up import warm_up

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _give_back_freed_pages() -> None:
    """Return freed heap pages to the kernel: a fit that reuses them would look too cheap."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _start_mark() -> int:
    """Reset the high-water mark and return the resident bytes from which the peak is counted."""
    _give_back_freed_pages()
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")  # 5 resets VmHWM to the current resident set, see proc(5)
        return _status_bytes("VmRSS")
    return _max_rss()


def _peak() -> int:
    return _status_bytes("VmHWM") if _CLEAR_REFS.exists() else _max_rss()


def _max_rss() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def peak_of(work: Callable[[], object]) -> int:
    """The peak bytes of some work beyond what is resident before, in this process."""
    before = _start_mark()
    result = work()  # kept until the mark is read
    peak = _peak()
    del result
    return max(0, peak - before)


def peak_of_one_fit(
    case: str, peer_name: str, iterations: int | None, seed: int, max_rows: int | None
) -> int:
    """Return the peak bytes beyond the data of one fit in this process; a child calls this."""
    X = data.load(case, max_rows)
    n_clusters = data.case(case).n_clusters
    peer = PEERS[peer_name]
    same_start = iterations is not None
    start = data.sampled_start(X, n_clusters, seed) if same_start and peer.takes_start else None
    warm_up(peer_name, X, n_clusters, same_start)
    data.model_weights.cache_clear()
    return peak_of(lambda: peer.fit(X, n_clusters, start, iterations, seed))


def peak_in_child(
    case: str, peer_name: str, iterations: int | None, seed: int, max_rows: int | None
) -> int | None:
    """Return the peak bytes beyond the data of one fit, or None if the child failed."""
    request = json.dumps([case, peer_name, iterations, seed, max_rows])
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", request],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        return None
    # Libraries may print to stdout on their own; the answer is the last line.
    return int(json.loads(child.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Peak memory of one fit (called by the harness).")
    parser.add_argument("request", help="JSON list: case, peer, iterations, seed, max_rows")
    sys.stdout.write("\n" + json.dumps(peak_of_one_fit(*json.loads(parser.parse_args().request))))
