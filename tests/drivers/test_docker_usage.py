"""What engines tell of containers, by their version of control groups."""

from __future__ import annotations

from typing import Any

import pytest

from drivers.docker_usage import figures


def told(**more: Any) -> dict[str, Any]:
    return {
        "read": "2026-01-02T03:04:05.123456789Z",
        "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
        "memory_stats": {"usage": 1000, "stats": {"total_inactive_file": 300, "inactive_file": 1}},
        "pids_stats": {"current": 4},
        "networks": {"eth0": {"rx_bytes": 1, "tx_bytes": 2}, "eth1": {"rx_bytes": 10, "tx_bytes": 20}},
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"op": "Read", "value": 5},
                {"op": "Write", "value": 6},
                {"op": "Total", "value": 11},
                {"op": "Read", "value": 50},
            ]
        },
    } | more


def test_first_version() -> None:
    assert figures(told()) == {
        "at": pytest.approx(1767323045.123456),
        "cpu_seconds": 2.5,
        "memory_bytes": 700,
        "pids": 4,
        "rx_bytes": 11,
        "tx_bytes": 22,
        "read_bytes": 55,
        "written_bytes": 6,
    }


def test_second_version_without_network_and_disk() -> None:
    usage = figures(
        told(
            memory_stats={"usage": 1000, "stats": {"inactive_file": 100}},
            networks=None,
            blkio_stats={"io_service_bytes_recursive": None},
            pids_stats={},
        )
    )
    assert usage is not None
    assert [usage[name] for name in ("memory_bytes", "rx_bytes", "read_bytes", "pids")] == [900, 0, 0, 0]


@pytest.mark.parametrize("gone", [{"cpu_stats": {"cpu_usage": {"total_usage": 0}}}, {"memory_stats": {}}])
def test_what_has_ended_has_no_usage(gone: dict[str, Any]) -> None:
    assert figures(told(**gone)) is None
