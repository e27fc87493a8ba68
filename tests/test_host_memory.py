"""The memory that a process may use: of the machine, or of the container that it runs in."""

import pytest

from coconut_ds.distributed.host_memory import HostMemoryError, available_bytes, usable_bytes

CGROUPS = {
    # Within a container of version 2 that sees only its own group: the limit of an outer group inside counts, too.
    "2": (
        "0::/a/b\n",
        "30 1 0:1 / CGROUP rw - cgroup2 cgroup rw\n",
        {"a/memory.max": "3000000", "a/memory.current": "1000", "a/b/memory.max": "max"},
    ),
    "2, namespace": (
        "0::/\n",
        "30 1 0:1 / CGROUP rw - cgroup2 cgroup rw\n",
        {
            "memory.max": "3000000",
            "memory.current": "701000",
            "memory.stat": "anon 5\ninactive_file 600000\nactive_file 100000",
        },
    ),
    "1": (
        "4:memory:/docker/x\n0::/\n",
        "30 1 0:1 /docker/x CGROUP rw - cgroup cgroup rw,memory\n31 1 0:1 / /nowhere rw - cgroup cgroup rw,cpu\n",
        {
            **{"memory.limit_in_bytes": "3000000", "memory.usage_in_bytes": "701000"},
            "memory.stat": "inactive_file 7\ntotal_inactive_file 600000\ntotal_active_file 100000",
        },
    ),
    "1, nested": (
        "4:cpu,memory:/a/b\n",
        "30 1 0:1 / CGROUP rw shared:1 - cgroup cgroup rw,cpu,memory\n",
        {
            **{"a/memory.limit_in_bytes": "3000000", "a/memory.usage_in_bytes": "1000"},
            **{"a/b/memory.limit_in_bytes": "9223372036854771712", "a/b/memory.usage_in_bytes": "1"},
        },
    ),
    "none": ("0::/a\n", "30 1 0:1 / CGROUP rw - cgroup2 cgroup rw\n", {}),
}


@pytest.mark.parametrize("kind", CGROUPS)
def test_the_memory_limit_of_a_container_counts(tmp_path, kind):
    """The page cache is not counted as used."""
    own, mounts, files = CGROUPS[kind]
    groups = tmp_path / "cgroups"
    for name, text in {**files, "cgroup.procs": ""}.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{text}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(own)
    (tmp_path / "self" / "mountinfo").write_text(mounts.replace("CGROUP", str(groups)))
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable: 4000 kB\n")
    assert usable_bytes(tmp_path) == (8_192_000 if kind == "none" else 3_000_000)
    assert available_bytes(tmp_path) == (4_096_000 if kind == "none" else 2_999_000)


def test_a_system_that_does_not_report_its_memory_is_an_error(tmp_path):
    with pytest.raises(HostMemoryError, match="does not report"):
        usable_bytes(tmp_path)
