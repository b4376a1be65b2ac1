"""Listings in every format, and what rows of containers and measurements say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from layerfs.cli import names, ps, watching
from layerfs.cli.formats import Listing, show_each, template
from layerfs.cli.names import NAME, may_be_path
from layerfs.errors import UsageError

LISTING = Listing({"ID": "THE ID", "Name": "NAME", "Size": "SIZE"}, ("ID", "Name"))
ROWS = [
    {"ID": "1", "Name": "one", "Size": "1MB", "Label": lambda name: f"<{name}>"},
    {"ID": "2", "Name": "a\x1b[31mred", "Size": "2MB", "Label": lambda name: ""},
]


def test_a_table_has_the_columns_of_the_listing_or_those_asked_for() -> None:
    assert LISTING.text(ROWS[:1], "table") == "THE ID    NAME\n1         one"
    assert LISTING.text(ROWS[:1], "", ("Size",)) == "SIZE\n1MB"
    assert LISTING.text([], "table") == "THE ID    NAME"


def test_a_template_makes_a_line_of_each_row() -> None:
    assert LISTING.text(ROWS[:1], r"{{.ID}}\t{{.Name}}\n") == "1\tone\n"
    assert LISTING.text(ROWS, "{{.Name}}") == "one\na [31mred"
    assert LISTING.text(ROWS, '{{.Label "x.y"}}') == "<x.y>\n"
    assert LISTING.text([], "{{.ID}}") == ""


def test_a_table_of_a_template_has_headings_and_columns() -> None:
    assert LISTING.text(ROWS[:1], r'table {{.Name}}\t{{upper .ID}}\t{{.Label "x.y"}}') == (
        "NAME      THE ID    Y\none       1         <x.y>"
    )
    assert LISTING.text([], r"table {{.ID}}\t{{.Size}}") == "THE ID    SIZE"


def test_json_is_an_object_a_line_without_functions() -> None:
    assert [json.loads(line) for line in LISTING.text(ROWS, "json").splitlines()] == [
        {name: value for name, value in row.items() if name != "Label"} for row in ROWS
    ]
    assert json.loads(LISTING.text(ROWS[:1], "{{json .}}")) == {"ID": "1", "Name": "one", "Size": "1MB"}


def test_a_wrong_template_is_refused() -> None:
    for form in ("{{.ID", "table {{wrong}}", "{{.Nothing}}"):
        with pytest.raises(UsageError):
            LISTING.text(ROWS, form)


def test_escapes_in_the_text_alone() -> None:
    assert template(r'a\tb{{"\\t"}}{{join .L "\n"}}').execute({"L": ["x", "y"]}) == "a\tb\\tx\ny"


def test_what_was_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    show_each([{"Id": "x"}, {"Id": "y"}], "{{.ID}}")
    assert capsys.readouterr().out == "x\ny\n"
    show_each([{"Id": "x"}], "json")
    assert capsys.readouterr().out == '[{"Id": "x"}]\n'
    show_each([], "")
    assert capsys.readouterr().out == "[]\n"


def port(inside: int, outside: int = 0, address: str = "0.0.0.0", kind: str = "tcp") -> dict[str, Any]:
    found: dict[str, Any] = {"PrivatePort": inside, "Type": kind}
    return found | ({"PublicPort": outside, "IP": address} if outside else {})


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([], ""),
        ([port(80)], "80/tcp"),
        ([port(80), port(81), port(83)], "80-81/tcp, 83/tcp"),
        ([port(80, 8080)], "0.0.0.0:8080->80/tcp"),
        ([port(80, 8080), port(80, 8080, "::")], "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"),
        ([port(81, 8001), port(80, 8000)], "0.0.0.0:8000-8001->80-81/tcp"),
        ([port(80, 8000), port(81, 8005)], "0.0.0.0:8000->80/tcp, 0.0.0.0:8005->81/tcp"),
        ([port(53, kind="udp"), port(53)], "53/tcp, 53/udp"),
    ],
)
def test_ports(found: list[dict[str, Any]], text: str) -> None:
    assert ps.ports(found) == text


def sample(**more: Any) -> dict[str, Any]:
    idle: dict[str, Any] = {"cpu_usage": {"total_usage": 0}}
    return {
        "id": "0" * 64, "name": "/box", "cpu_stats": idle, "precpu_stats": idle, "memory_stats": {},
        "pids_stats": {}, "blkio_stats": {}, **more,
    }  # fmt: skip


def test_what_a_container_uses() -> None:
    row = watching.row(sample(), no_trunc=False)
    assert (row["ID"], row["Name"], row["CPUPerc"], row["MemUsage"]) == ("0" * 12, "box", "0.00%", "0B / 0B")
    row = watching.row(
        sample(
            cpu_stats={"cpu_usage": {"total_usage": 30}, "system_cpu_usage": 200, "online_cpus": 2},
            precpu_stats={"cpu_usage": {"total_usage": 10}, "system_cpu_usage": 100},
            memory_stats={"usage": 3 << 20, "limit": 4 << 20, "stats": {"inactive_file": 1 << 20}},
            pids_stats={"current": 7},
            networks={"a": {"rx_bytes": 1000, "tx_bytes": 1}, "b": {"rx_bytes": 500, "tx_bytes": 2}},
            blkio_stats={
                "io_service_bytes_recursive": [
                    {"op": "Read", "value": 2000}, {"op": "write", "value": 5}, {"op": "read", "value": 1},
                ]
            },
        ),
        no_trunc=True,
    )  # fmt: skip
    assert (row["CPUPerc"], row["MemUsage"], row["MemPerc"]) == ("40.00%", "2MiB / 4MiB", "50.00%")
    assert (row["NetIO"], row["BlockIO"], row["PIDs"]) == ("1.5kB / 3B", "2kB / 5B", "7")


def test_a_name_is_looked_for_as_a_directory_only_if_it_can_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert may_be_path("proc")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert not may_be_path("x")
    assert may_be_path(".")
    assert may_be_path("a/b")


def test_a_name_needs_no_store() -> None:
    context = click.Context(click.Command("x"), obj=Path("/nonexistent"))
    assert NAME.convert("base", None, context) == "base"


def test_a_mount_of_the_name_comes_before_a_directory() -> None:
    class Known:
        def request(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
            return [
                {"Id": "1" * 64, "Names": ["/a"], "Mountpoint": "/mnt", "State": "running"},
                {"Id": "2" * 64, "Names": ["/mnt"], "Mountpoint": "/else", "State": "running"},
                {"Id": "3" * 64, "Names": ["/b"], "Mountpoint": "/gone", "State": "exited"},
            ]

    def find(path: str) -> str | None:
        return names.mounted_on(Known(), path)  # type: ignore[arg-type]

    assert find("/mnt") == find("/mnt/") == find("/x/../mnt") == "1" * 64
    assert find("mnt") == "mnt"
    assert find("/gone") is None
