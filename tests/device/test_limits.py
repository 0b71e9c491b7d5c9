"""How much memory a process may use, on control-group trees made in a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from archport.device.limits import cgroup_limit, read_limit, usable_memory

GIB = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_version_2_group_limits_its_process(tmp_path: Path):
    root = tree(tmp_path, {"app/memory.max": f"{4 * GIB}\n"})
    assert cgroup_limit("0::/app\n", root) == 4 * GIB


def test_a_group_further_up_binds_when_it_is_smaller(tmp_path: Path):
    root = tree(
        tmp_path,
        {"user/memory.max": f"{2 * GIB}\n", "user/job/memory.max": f"{8 * GIB}\n", "user/job/step/memory.max": "max\n"},
    )
    assert cgroup_limit("0::/user/job/step\n", root) == 2 * GIB


def test_the_mark_where_the_kernel_throttles_counts_as_a_limit(tmp_path: Path):
    root = tree(tmp_path, {"app/memory.max": f"{4 * GIB}\n", "app/memory.high": f"{3 * GIB}\n"})
    assert cgroup_limit("0::/app\n", root) == 3 * GIB


def test_max_everywhere_is_no_limit(tmp_path: Path):
    root = tree(tmp_path, {"memory.max": "max\n", "app/memory.max": "max\n", "app/memory.high": "max\n"})
    assert cgroup_limit("0::/app\n", root) is None


def test_a_version_1_group_limits_its_process(tmp_path: Path):
    root = tree(tmp_path, {"memory/app/memory.limit_in_bytes": f"{GIB}\n"})
    membership = "12:pids:/app\n9:cpu,cpuacct:/app\n4:memory:/app\n1:name=systemd:/app\n"
    assert cgroup_limit(membership, root) == GIB


def test_the_number_by_which_version_1_says_no_limit_is_none(tmp_path: Path):
    root = tree(tmp_path, {"memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert cgroup_limit("4:memory:/\n", root) is None


def test_a_container_that_sees_only_its_own_group_at_the_mount_reads_that(tmp_path: Path):
    root = tree(tmp_path, {"memory/memory.limit_in_bytes": f"{GIB}\n"})
    assert cgroup_limit("4:memory:/docker/0123abcd\n", root) == GIB


def test_a_group_outside_the_namespace_never_leaves_the_mount(tmp_path: Path):
    tree(tmp_path, {"outside/memory.max": f"{GIB}\n", "mount/memory.max": f"{2 * GIB}\n"})
    assert cgroup_limit("0::/../outside\n", tmp_path / "mount") == 2 * GIB


def test_both_versions_at_once_take_the_smaller(tmp_path: Path):
    root = tree(tmp_path, {"memory/app/memory.limit_in_bytes": f"{GIB}\n", "app/memory.max": f"{2 * GIB}\n"})
    assert cgroup_limit("4:memory:/app\n0::/app\n", root) == GIB


@pytest.mark.parametrize("membership", ["", "garbage\n", "4:memory\n"])
def test_text_that_is_no_membership_is_no_limit(tmp_path: Path, membership: str):
    assert cgroup_limit(membership, tmp_path) is None


@pytest.mark.parametrize("text", ["", "max\n", "-1\n", "12 KB\n"])
def test_a_control_file_without_a_byte_count_is_no_limit(tmp_path: Path, text: str):
    assert read_limit(tree(tmp_path, {"memory.max": text}) / "memory.max") is None


def test_usable_memory_is_the_groups_limit_when_that_is_least(tmp_path: Path):
    root = tree(tmp_path, {"cgroup": "0::/app\n", "fs/app/memory.max": f"{64 * 2**20}\n"})
    assert usable_memory(root / "cgroup", root / "fs") == 64 * 2**20


def test_usable_memory_obeys_the_limit_on_address_space():
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.getrlimit(resource.RLIMIT_AS)[1])); "
        "from archport.device.limits import usable_memory; print(usable_memory())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) <= 2**31
