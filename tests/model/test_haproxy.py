"""HAProxy's configuration: what reaches it, what its digests say, what is read of its answers."""

from __future__ import annotations

import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from model import haproxy
from model.balancers import BalancerConfig, Server, TargetCheck

ONE, TWO = UUID(int=1), UUID(int=2)
EVIL = "x\nserver evil 10.6.6.6:80", 'x" inject', "x y", "x#", "x\\ y", "$HOME", "x\x00"


def server(id: UUID = ONE, weight: int = 100, **more: Any) -> Server:
    values = {"name": haproxy.server_name(str(id), 1), "address": "10.0.0.1", "port": 80}
    return Server(**(values | {"instance_id": id, "weight": weight} | more))


def config(*servers: Server, **more: Any) -> BalancerConfig:
    values = {"mode": "http", "port": 80, "algorithm": "round-robin", "check": TargetCheck()}
    return BalancerConfig(**(values | more), servers=list(servers))


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_but_what_is_meant_reaches_the_file(evil: str) -> None:
    for wrong in (
        config(cookie=evil),
        config(check=TargetCheck.model_construct(type="http", path=f"/{evil}")),
        config(server(name=evil)),
        config(server(address=evil)),
    ):
        with pytest.raises(ValueError):
            haproxy.render(wrong, 1)


@pytest.mark.parametrize("number", [-1, 70_000])
def test_numbers_are_within_what_they_mean(number: int) -> None:
    for wrong in (config(port=number), config(server(port=number)), config(server(weight=number))):
        with pytest.raises(ValueError):
            haproxy.render(wrong, 1)


def test_digests_tell_weights_from_all_else() -> None:
    known = config(server(), server(TWO))
    lighter = config(server(weight=1), server(TWO))
    other = config(server(), server(TWO, port=81))
    assert haproxy.digest(known) == haproxy.digest(known.model_copy())
    assert haproxy.digest(known) != haproxy.digest(lighter)
    assert haproxy.structure(known) == haproxy.structure(lighter) != haproxy.structure(other)
    assert haproxy.structure(config(tls_version=1)) != haproxy.structure(config(tls_version=2))
    text = haproxy.render(known, 17)
    assert haproxy.revision_of(text) == 17
    assert f"description {haproxy.structure(known)}" in text


@pytest.mark.parametrize("version", [0, 3])
def test_who_comes_by_tls_is_told_so_whatever_its_version(version: int) -> None:
    assert "X-Forwarded-Proto https" in haproxy.render(config(tls_version=version), 1)
    assert "X-Forwarded-Proto http\n" in haproxy.render(config(), 1)


def test_addresses_of_both_families() -> None:
    text = haproxy.render(config(server(address="fd00::1")), 1)
    assert "[fd00::1]:80 weight 100" in text


@pytest.mark.skipif(shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None, reason="no HAProxy here")
def test_haproxy_takes_every_kind_of_configuration(tmp_path: Path) -> None:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    checks = (
        TargetCheck(),
        TargetCheck(type="http", path="/a%20b?c=d&e=~f:@,+"),
        TargetCheck(interval_seconds=300, fall=9),
    )
    texts = [haproxy.FIRST]
    for mode, algorithm, check in product(("http", "tcp"), haproxy.ALGORITHMS, checks):
        cookie = "SRV" if mode == "http" else None
        made = config(server(), server(TWO, 0), mode=mode, algorithm=algorithm, check=check, cookie=cookie)
        texts.append(haproxy.render(made, 1))
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.cfg").write_text(text.replace(haproxy.HOME, str(tmp_path)))
        checked = subprocess.run(
            [str(program), "-c", "-f", f"{number}.cfg"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, f"{checked.stderr}\n{text}"


def states(text: str) -> dict[str, dict[str, str]]:
    return haproxy.states(text)


def test_new_servers_are_down_only_where_another_takes_requests() -> None:
    first, second = haproxy.server_name(str(ONE), 1), haproxy.server_name(str(TWO), 1)
    text = haproxy.render(config(server(), server(TWO)), 1)
    assert states(haproxy.state_file({}, text)) == {}
    running = {"srv_op_state": "2", "srv_name": first, "srv_port": "1", "be_name": haproxy.BACK}
    running |= {"srv_uweight": "7", "srv_iweight": "7"}
    columns = dict.fromkeys(haproxy._STATE_COLUMNS, "0")
    told = states(haproxy.state_file({first: columns | running}, text))
    assert (told[first]["srv_op_state"], told[first]["srv_port"], told[first]["srv_uweight"]) == ("2", "80", "100")
    assert (told[second]["srv_op_state"], told[second]["srv_iweight"]) == ("0", "100")
    # One that drains takes nothing: the new one is tried.
    draining = haproxy.render(config(server(weight=0), server(TWO)), 1)
    assert set(states(haproxy.state_file({first: columns | running}, draining))) == {first}


def test_where_checks_only_connect_all_servers_are_tried_when_none_is_up() -> None:
    asked = {kind: haproxy.render(config(server(), check=TargetCheck(type=kind)), 1) for kind in ("tcp", "http")}
    assert "use_backend last if { nbsrv(out) eq 0 }" in asked["tcp"]
    assert "use_backend" not in asked["http"]


STAT = """# pxname,svname,scur,stot,bin,bout,econ,eresp,hrsp_5xx,req_tot,status,weight,check_status,last_chk,
in,FRONTEND,3,9,100,200,,,4,12,OPEN,,,,
out,t-00000000000000000000000000000001-1,1,7,60,120,1,2,3,,UP,100,L7OK,HTTP status check returned code <3C>200<3E>,
out,t-00000000000000000000000000000002-4,0,0,0,0,0,0,0,,DOWN 1/2,100,* L4CON,Connection refused,
out,t-00000000000000000000000000000003-1,0,0,0,0,0,0,0,,DRAIN,0,L4OK,,
out,t-00000000000000000000000000000004-1,0,0,0,0,0,0,0,,MAINT,1,INI,,
out,strange,9,9,9,9,9,9,9,,UP,1,L4OK,,
out,BACKEND,1,7,60,120,1,2,3,,UP,300,,,
last,t-00000000000000000000000000000001-1,2,1,0,0,0,0,0,,no check,100,,,
last,t-00000000000000000000000000000009-1,2,1,0,0,0,0,0,,no check,100,,,
"""


def test_statistics_are_read_by_their_columns() -> None:
    whole, servers = haproxy.readings(STAT)
    assert whole == {"sessions": 3, "requests": 12, "bytes_in": 100, "bytes_out": 200, "errors": 4}
    assert [one.health for one in servers] == ["up", "down", "draining", "maint"]
    assert (servers[0].requests, servers[0].errors) == (8, 6), "those of both, where no check passed"
    assert (servers[1].check, servers[3].check) == ("L4CON Connection refused", "not checked yet")
    assert haproxy.instance_of(servers[1].name) == f"{TWO.hex}"
    assert haproxy.readings("nothing of it") == (dict.fromkeys(whole, 0), [])


def test_what_a_check_has_told() -> None:
    rows = [
        {"status": status, "check_status": check, "chkfail": fails}
        for status, check, fails in (
            ("UP", "INI", "0"),
            ("UP", "L4OK", "0"),
            ("DOWN", "INI", "0"),
            ("DOWN 1/2", "L4OK", "0"),
            ("DOWN", "L4CON", "1"),
        )
    ]
    assert [haproxy.is_known(row) for row in rows] == [False, True, False, False, True]
