"""The flags' defaults and forms: the number of decoding workers, and the shard."""

from __future__ import annotations

import builtins
import io
import os

import pytest

from aks import cli


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("250000 100000", 3), ("50000 100000", 1)])
def test_a_container_s_quota_bounds_the_cores(monkeypatch, quota, cores):
    def open_quota(path, *arguments, open=open, **options):
        return io.StringIO(quota) if path == "/sys/fs/cgroup/cpu.max" else open(path, *arguments, **options)

    def exists(path, exists=os.path.exists):
        return "cpu.max" in str(path) or exists(path)

    monkeypatch.setattr(os.path, "exists", exists)
    monkeypatch.setattr(builtins, "open", open_quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cli.count_cores() == cores
    args = cli.build_parser(None, "out").parse_args([])
    assert cli.decode_settings(args)["workers"] == min(max(cores - 1, 1), 16)


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("1/3", (1, 3)), ("3/3", (3, 3))])
def test_shards_count_from_one(monkeypatch, text, shard):
    monkeypatch.delenv("RANK", raising=False)  # torchrun sets it.
    assert cli.parse_shard(cli.build_parser(None, "out").parse_args(["--shard", text])) == shard


@pytest.mark.parametrize(("value", "workers"), [("", 7), ("0", 7), ("2", 3), ("many", 7)])
def test_processes_on_one_machine_share_its_cores(monkeypatch, value, workers):
    for name, number in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": value,
    }.items():
        monkeypatch.setenv(name, number)
    monkeypatch.setattr(cli, "count_cores", lambda: 8)
    assert cli.count_workers(cli.build_parser(None, "out").parse_args([])) == workers
