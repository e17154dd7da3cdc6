"""How many cores a process counts: its affinity and its container's quota."""

from __future__ import annotations

import os

import pytest

from aks import cli


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "9000000 100000"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/of/the/host\n", {"cpu.max": "400000 100000"}, 4),
        ("3:cpuset:/x\n2:cpu,cpuacct:/docker/x\n", {"cpu/cpu.cfs_quota_us": "-1"}, 64),
        ("2:cpu,cpuacct:/docker/x\n0::/\n", {"cpu/cpu.cfs_quota_us": "600000"}, 6),
        ("1:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "50000"}, 4),
    ],
)
def test_a_container_s_quota_bounds_the_cores(tmp_path, monkeypatch, groups, files, cores):
    (tmp_path / "own").write_text(groups)
    for name, content in {"cpu/cpu.cfs_period_us": "100000", **files}.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content + "\n")
    monkeypatch.setattr(cli, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cli, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cli.count_cores() == cores
    args = cli.parser(None, "out").parse_args([])
    assert cli.reading(args)["workers"] == min(max(cores - 1, 1), 16)


def test_without_control_groups_the_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "OWN_CGROUPS", tmp_path / "absent")
    assert cli.count_cores() == len(os.sched_getaffinity(0))
