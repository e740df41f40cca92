"""HAProxy's configuration, and what its command line says. Pure: nothing is read, and the same is always the same.

Nothing that a user wrote reaches the file but what was matched against a narrow pattern: numbers, a path without
blanks, quotes and backslashes, a cookie's name. Names of balancers and targets do not come in at all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_address

from model.balancers import TLS, BalancerConfig, Server, ServerReading, TargetCheck, TargetHealth
from model.vault import FOLDER as SECRETS

#: The home of the image's user, where it may write.
HOME = "/var/lib/haproxy"
FILE, STATE_FILE = f"{HOME}/haproxy.cfg", f"{HOME}/servers"
#: What is about to be the file, and what was it.
NEW_FILE, OLD_FILE = f"{FILE}.new", f"{FILE}.old"
#: Of the running proxy and of its master: only what is in the container comes to its loopback interface.
ADMIN, MASTER = 18404, 18405
FRONT, BACK = "in", "out"
#: The same servers without checks, where those only connect: if none is up, all are tried. Checks fail too where a
#: machine is overloaded, and a request's own connection tells as much.
LAST = "last"
ALGORITHMS = {"round-robin": "roundrobin", "least-conn": "leastconn", "source": "source", "random": "random(2)"}
#: How often a server that is down is asked, at least: it is back as soon as it is well.
DOWN_SECONDS = 2.0
#: For a connection to a target, at most; and how long one is tried for in all, at least, on one target or another.
CONNECT_SECONDS, TRY_SECONDS = 3.0, 5.0
#: Processes of before that a reload may leave, each with the connections that it has begun.
OLD_PROCESSES = 50
#: Open files, at most: about half as many connections, or fewer where its host allows fewer.
DESCRIPTORS = 50_000
_COOKIE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATH = re.compile(r"/[A-Za-z0-9/._~%?&=+,:@-]{0,254}")
_NAME = re.compile(r"t-[0-9a-f]{32}-[0-9]{1,10}")
_REVISION = re.compile(r"^# revision ([0-9]{1,10})$", re.MULTILINE)
_SERVER = re.compile(
    rf"^ +server (?P<name>{_NAME.pattern}) \S+:(?P<port>[0-9]+) weight (?P<weight>[0-9]+)", re.MULTILINE
)
#: Of a server, in such a file.
_RUNS = "2"
_NONE = ("srv_addr", "srv_fqdn", "srvrecord", "srv_check_addr", "srv_agent_addr")
#: Of a file of servers' states: its version, and the columns that it has in all versions of the program.
_STATE_COLUMNS = tuple(
    name
    for line in (
        "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight",
        "srv_iweight srv_time_since_last_change srv_check_status srv_check_result",
        "srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn",
        "srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr",
        "srv_agent_port",
    )
    for name in line.split()
)

#: With this a proxy starts that was told nothing yet: it can be told.
FIRST = f"""global
    description none
    stats socket ipv4@127.0.0.1:{ADMIN} level admin expose-fd listeners
    fd-hard-limit {DESCRIPTORS}
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""
#: The program of a balancer's instance: what it was told last, else ``FIRST``.
PROGRAM = [
    "/bin/sh",
    "-c",
    f'[ -s {FILE} ] || echo "$1" > {FILE}; exec haproxy -W -db -S 127.0.0.1:{MASTER} -f {FILE}',
    "balancer",
    FIRST,
]


def server_name(instance_id: str, generation: int) -> str:
    """Of a target: another machine of the same instance is another server."""
    return f"t-{instance_id.replace('-', '')}-{generation}"


def instance_of(server: str) -> str | None:
    """The 32 hexadecimal digits of a server's instance."""
    return server[2:34] if _NAME.fullmatch(server) else None


def render(config: BalancerConfig, revision: int) -> str:
    """The file. Raises ValueError where something in ``config`` is not what its model allows."""
    return f"# revision {revision}\n" + _body(config, structure(config))


def digest(config: BalancerConfig) -> str:
    """The same for the same configuration, weights included. SHA-256, hexadecimal digits."""
    return hashlib.sha256(_body(config, "").encode()).hexdigest()


def structure(config: BalancerConfig) -> str:
    """The same where only weights differ, which a running proxy can be told."""
    alike = config.model_copy(update={"servers": [s.model_copy(update={"weight": 1}) for s in config.servers]})
    return digest(alike)[:32]


def revision_of(text: str) -> int:
    """Of a file; 0 where it says none."""
    found = _REVISION.search(text)
    return int(found[1]) if found else 0


def _body(config: BalancerConfig, description: str) -> str:
    sections = (_global(config, description), _defaults(config), _front(config), _back(config), _last(config))
    return "\n".join("\n    ".join(lines) + "\n" for lines in sections)


def _global(config: BalancerConfig, description: str) -> list[str]:
    tls = [] if config.tls_version is None else [f"# certificate {config.tls_version}"]
    return [
        "global",
        f"description {description or 'none'}",
        f"stats socket ipv4@127.0.0.1:{ADMIN} level admin expose-fd listeners",
        "stats timeout 10s",
        f"server-state-file {STATE_FILE}",
        "hard-stop-after 1h",
        f"mworker-max-reloads {OLD_PROCESSES}",
        f"nbthread {_number(config.threads, 1, 64)}",
        f"fd-hard-limit {DESCRIPTORS}",
        "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
        *tls,
    ]


def _defaults(config: BalancerConfig) -> list[str]:
    # A connection that cannot be made is tried elsewhere; a request that was sent only where it may come twice.
    of_http = ["timeout http-request 15s", "timeout http-keep-alive 75s", "retry-on conn-failure empty-response"]
    return [
        "defaults",
        f"mode {config.mode}",
        f"timeout connect {_milliseconds(_connect_seconds(config.check))}",
        "timeout client 5m",
        "timeout server 5m",
        "timeout tunnel 1h",
        "timeout queue 10s",
        f"retries {max(3, math.ceil(TRY_SECONDS / _connect_seconds(config.check)))}",
        "option redispatch 1",
        "option dontlognull",
        *(of_http if config.mode == "http" else []),
        "load-server-state-from-file global",
    ]


def _connect_seconds(check: TargetCheck) -> float:
    """For a connection to a target, and each check of one. What is dead may not even refuse it: it is out before the
    second interval since then has ended, where all failures after the first have a quarter of it to wait."""
    return min(max(0.65 * check.interval_seconds / check.fall, 0.1), CONNECT_SECONDS)


def _front(config: BalancerConfig) -> list[str]:
    lines = [f"frontend {FRONT}"]
    bind = f"bind :{_number(config.port, 1, 65535)}"
    if config.tls_version is not None:
        bind += f" ssl crt {SECRETS}/{TLS}" + (" alpn h2,http/1.1" if config.mode == "http" else "")
    lines.append(bind)
    if config.mode == "http":
        # Who has a connection open to a process that a reload is replacing hears with its next answer that it ends.
        lines += ["option idle-close-on-response", "option forwardfor"]
        lines.append(f"http-request set-header X-Forwarded-Proto {'http' if config.tls_version is None else 'https'}")
        lines.append("http-request disable-l7-retry if ! { method GET HEAD OPTIONS }")
    if config.check.type == "tcp":
        lines.append(f"use_backend {LAST} if {{ nbsrv({BACK}) eq 0 }}")
    return [*lines, f"default_backend {BACK}"]


def _back(config: BalancerConfig) -> list[str]:
    check = config.check
    lines = [f"backend {BACK}", *_choice(config)]
    if check.type == "http":
        path = check.path or "/"
        if not _PATH.fullmatch(path):
            raise ValueError(f"the path of a check: {path!r}")
        lines += ["option httpchk", f"http-check send meth GET uri {path} ver HTTP/1.1 hdr Host cairn-check"]
        lines += ["http-check expect status 200-399"]
    inter, timeout = _milliseconds(check.interval_seconds), _milliseconds(check.timeout_seconds)
    down = min(inter, _milliseconds(DOWN_SECONDS))
    # When one check has failed, the next come sooner.
    fast = max(min(inter // (4 * max(check.fall - 1, 1)), 1000), 50)
    times = f"inter {inter} fastinter {fast} downinter {down}"
    lines.append(f"timeout check {timeout}")
    lines.append(f"default-server check {times} fall {check.fall} rise {check.rise}")
    return [*lines, *(_server(config, server) for server in config.servers)]


def _last(config: BalancerConfig) -> list[str]:
    return [f"backend {LAST}", *_choice(config), "retries 1", *(_server(config, server) for server in config.servers)]


def _choice(config: BalancerConfig) -> list[str]:
    """How one of the servers is chosen."""
    lines = [f"balance {ALGORITHMS[config.algorithm]}"]
    if config.algorithm == "source":
        lines.append("hash-type consistent")
    if config.cookie is not None:
        if config.mode != "http" or not _COOKIE.fullmatch(config.cookie):
            raise ValueError(f"the cookie of a balancer: {config.cookie!r}")
        secure = " secure" if config.tls_version is not None else ""
        lines.append(f"cookie {config.cookie} insert indirect nocache httponly{secure}")
    return lines


def _server(config: BalancerConfig, server: Server) -> str:
    if not _NAME.fullmatch(server.name):
        raise ValueError(f"the name of a server: {server.name!r}")
    address = ip_address(server.address)
    host = f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - the version
    cookie = f" cookie {server.instance_id.hex}" if config.cookie is not None else ""
    weight = _number(server.weight, 0, 256)
    return f"server {server.name} {host}:{_number(server.port, 1, 65535)} weight {weight}{cookie}"


def _number(value: int, least: int, most: int) -> int:
    if not least <= int(value) <= most:
        raise ValueError(f"{value} is not within {least} and {most}")
    return int(value)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def table(text: str) -> list[dict[str, str]]:
    """The rows of what ``show stat`` says, by the names of its columns."""
    found = text[text.find("# ") + 2 :] if "# " in text else ""
    return [row for row in csv.DictReader(io.StringIO(found.strip())) if row.get("pxname")]


def info(text: str) -> dict[str, str]:
    """What ``show info`` says."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if value}


def states(text: str, backend: str = BACK) -> dict[str, dict[str, str]]:
    """What ``show servers state`` says, by server of one backend."""
    found, columns = {}, list[str]()
    for line in text.splitlines():
        if line.startswith("# "):
            columns = line[2:].split()
        elif columns and len(words := line.split()) == len(columns):
            row = dict(zip(columns, words, strict=True))
            if row["be_name"] == backend:
                found[row["srv_name"]] = row
    return found


def state_file(known: Mapping[str, Mapping[str, str]], text: str) -> str:
    """What a proxy that is about to load the file ``text`` is told of how its servers are: as the one before it knows,
    and of a new one that it is down until a check has passed. Where none of those that are known could take requests,
    nothing is said of new ones: they are tried."""
    lines = ["1", "# " + " ".join(_STATE_COLUMNS)]
    new = dict.fromkeys(_STATE_COLUMNS, "0") | dict.fromkeys(_NONE, "-")
    new |= {"be_id": "3", "be_name": BACK, "srv_check_status": "1", "srv_check_state": "6"}
    servers = list(_SERVER.finditer(text.partition(f"\nbackend {LAST}\n")[0]))
    takes = any(
        server["weight"] != "0" and known.get(server["name"], {}).get("srv_op_state") == _RUNS for server in servers
    )
    for number, server in enumerate(servers, 1):
        if server["name"] not in known and not takes:
            continue
        row = {**new, "srv_id": str(number), **known.get(server["name"], {})}
        row |= {"srv_name": server["name"], "srv_port": server["port"]}
        row |= dict.fromkeys(("srv_uweight", "srv_iweight"), server["weight"])
        lines.append(" ".join(row[column] for column in _STATE_COLUMNS))
    return "\n".join(lines) + "\n"


def is_known(row: Mapping[str, str]) -> bool:
    """Whether a row of ``show stat`` tells of a server whether it is up: a check has taken it in, or has failed."""
    checked = row.get("check_status", "") not in ("", "INI")
    return checked and (row["status"].split(" ")[0] != "DOWN" or _int(row, "chkfail") > 0)


def readings(stat: str) -> tuple[dict[str, int], list[ServerReading]]:
    """What ``show stat`` says, as the figures of the whole and of each server."""
    rows = table(stat)
    whole = dict.fromkeys(("sessions", "requests", "bytes_in", "bytes_out", "errors"), 0)
    for row in rows:
        if row["pxname"] == FRONT and row["svname"] == "FRONTEND":
            whole = _figures(row, requests="req_tot")
    unchecked = {row["svname"]: Counter(_figures(row)) for row in rows if row["pxname"] == LAST}
    servers = []
    for row in rows:
        name = row["svname"]
        if row["pxname"] == BACK and instance_of(name) is not None:
            said = " ".join(filter(None, (row.get("check_status"), row.get("last_chk")))).strip("* ")
            said = "not checked yet" if said == "INI" else said
            more = unchecked.get(name, Counter[str]())
            figures = {figure: value + more[figure] for figure, value in _figures(row).items()}
            servers.append(ServerReading(name=name, health=_health(row), check=said[:200] or None, **figures))
    return whole, servers


def _figures(row: Mapping[str, str], requests: str = "stot") -> dict[str, int]:
    return {
        "sessions": _int(row, "scur"),
        # Of TCP there are connections alone.
        "requests": _int(row, requests) or _int(row, "stot"),
        "bytes_in": _int(row, "bin"),
        "bytes_out": _int(row, "bout"),
        "errors": sum(_int(row, name) for name in ("econ", "eresp", "hrsp_5xx")),
    }


def _int(row: Mapping[str, str], name: str) -> int:
    value = row.get(name) or ""
    return int(value) if value.isdigit() else 0


def _health(row: Mapping[str, str]) -> TargetHealth:
    status = row["status"]
    if status.startswith("MAINT"):
        return "maint"
    if status.startswith("DOWN"):
        return "down"
    return "draining" if status.startswith("DRAIN") or row.get("weight") == "0" else "up"
