"""What threads have freed goes back to the system; in a process of its own, whose heaps are those of a new server."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys, threading
from pathlib import Path
from serve.heap import give_back, use_one_heap

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

def request():
    blocks = [bytes(2000) for _ in range(5000)]
    del blocks
    done.wait()
    ends.wait()

if sys.argv[1] == "one":
    use_one_heap()
done, ends = threading.Barrier(5), threading.Event()
# A server has freed large blocks. After that, glibc keeps up to twice as much at the end of each heap.
large = bytes(30_000_000)
del large
before = resident_mb()
for _ in range(4):
    threading.Thread(target=request).start()
done.wait()
give_back()
print(resident_mb() - before)
ends.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim and /proc exist on Linux only")
def test_what_threads_have_freed_goes_back_to_the_system():
    kept = {}
    for heaps in ("one", "many"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, heaps], cwd=ROOT, capture_output=True, text=True, check=True
        )
        kept[heaps] = float(done.stdout)
    print(kept)
    assert kept["one"] < 4 < kept["many"]
