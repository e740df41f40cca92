"""What a container has and does before its image's own program: user data, an authorized key, a restart policy.

Files come by the engine's archive call, between creation and first start; nothing of them is on a command line.
"""

from __future__ import annotations

import io
import tarfile
import time
from typing import Any

import requests
from docker import APIClient

from drivers.docker_engine import CALL_SECONDS, NOT_FOUND
from drivers.ownership import USER_DATA
from model.errors import EngineRefused, EngineUnavailable
from model.instances import MachineSpec

FOLDER = ".cairn"
#: Between two questions whether user data has run.
RAN_SECONDS = 0.2
_NEVER = "0001-01-01T00:00:00Z"

# Its first argument is the user that the image runs as, the others are the image's program. What the script ended
# with is kept, so that it runs once in the life of a container; where it was interrupted nothing is, and it runs again.
_START = b"""#!/bin/sh
user=$1
shift
if [ ! -e /.cairn/ran ]; then
    /.cairn/user-data
    echo $? > /.cairn/ran.new
    mv /.cairn/ran.new /.cairn/ran
fi
read -r code < /.cairn/ran
[ "$code" = 0 ] || exit "$code"
case $user in
'' | root | root:* | 0 | 0:*) exec "$@" ;;
esac
# As the engine takes it: a name or a number, of a user that /etc/passwd may not know.
uid=${user%%:*} gid=0 name='' home=/
while IFS=: read -r known _ id group _ folder _; do
    if [ "$uid" = "$known" ] || [ "$uid" = "$id" ]; then
        uid=$id gid=$group name=$known home=$folder
        break
    fi
done < /etc/passwd
group=$gid
case $user in
*:*)
    group=${user#*:}
    [ ! -e /etc/group ] || while IFS=: read -r known _ id _; do
        if [ "$group" = "$known" ]; then group=$id; fi
    done < /etc/group
    ;;
esac
case $uid:$group in
*[!0-9:]*)
    echo "the image runs as $user, whom its /etc/passwd and /etc/group do not know" >&2
    exit 126
    ;;
esac
if [ "$HOME" = /root ]; then
    HOME=$home
    export HOME
fi
# The coreutils' one; what has only busybox has its su, which takes nobody but users with a name, and their group.
if chroot --skip-chdir --userspec=0:0 / /bin/sh -c : 2> /dev/null; then
    exec chroot --skip-chdir --userspec="$uid:$group" / "$@"
fi
if [ -z "$name" ] || [ "$group" != "$gid" ]; then
    name=uid-$uid-$group
    grep -q "^$name:" /etc/passwd || echo "$name:x:$uid:$group::$home:/bin/sh" >> /etc/passwd
fi
exec su -p -s /bin/sh "$name" -c 'exec "$0" "$@"' "$@"
"""


def restart_policy(spec: MachineSpec) -> dict[str, Any]:
    """As the engine wants it. Its own ``always`` starts stopped containers too, when it starts itself."""
    name, _, most = spec.restart_policy.partition(":")
    return {"Name": "unless-stopped" if name == "always" else name, "MaximumRetryCount": int(most or 0)}


def program(image: dict[str, Any], spec: MachineSpec) -> dict[str, Any]:
    """What a container of this image runs: with user data, our wrapper before what it would run else."""
    config = image["Config"] or {}
    own = [*(config.get("Entrypoint") or []), *(spec.cmd or config.get("Cmd") or [])]
    if not own:
        raise EngineRefused(f"image {spec.image} has no program of its own: give one with cmd (cairn: -- CMD...)")
    if spec.tree is not None and spec.cmd:  # whatever the image would do with that
        return {"entrypoint": spec.cmd, "command": []}
    if spec.user_data is None:
        return {"command": spec.cmd}
    start = ["/bin/sh", f"/{FOLDER}/start", config.get("User") or ""]
    return {"entrypoint": start, "command": own, "user": "0:0"}


def is_new(inspected: dict[str, Any]) -> bool:
    """Whether the container was never started."""
    return str(inspected["State"]["StartedAt"]) == _NEVER


def fill(client: APIClient, engine_id: str, spec: MachineSpec, user_data: bytes | None) -> None:
    """Put in what it is to have before its first start; the same again changes nothing."""
    if spec.user_data is not None and user_data is None:
        raise EngineUnavailable("the script of its user_data is missing")
    if spec.user_data is not None and not _has(client, engine_id, "/bin/sh"):
        raise EngineRefused(f"image {spec.image} has no /bin/sh, which user_data needs")
    if user_data is not None or spec.authorized_key is not None:
        client.put_archive(engine_id, "/", _archive(spec, user_data))


def ran(client: APIClient, inspected: dict[str, Any]) -> int | None:
    """What its user data ended with; 0 where it has none, None while that has not ended."""
    if USER_DATA not in (inspected["Config"]["Labels"] or {}):
        return 0
    if not _has(client, inspected["Id"], f"/{FOLDER}/ran"):
        time.sleep(RAN_SECONDS)
        return None
    parts, _ = client.get_archive(inspected["Id"], f"/{FOLDER}/ran")
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        file = archive.extractfile("ran")
        said = file.read(10).strip() if file else b""
    return int(said) if said.isdigit() else None


def _has(client: APIClient, engine_id: str, path: str) -> bool:
    url = f"{client.base_url}/v{client.api_version}/containers/{engine_id}/archive"
    answer = client.head(url, params={"path": path}, timeout=CALL_SECONDS)
    if answer.status_code == NOT_FOUND:
        return False
    if answer.status_code != requests.codes.ok:
        raise EngineUnavailable(f"the engine failed: {answer.status_code} for a file of a container")
    return True


def _archive(spec: MachineSpec, user_data: bytes | None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:

        def add(name: str, mode: int, content: bytes | None = None) -> None:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.mtime = mode, int(time.time())
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

        if user_data is not None:
            add(FOLDER, 0o700)
            add(f"{FOLDER}/start", 0o700, _START)
            add(f"{FOLDER}/user-data", 0o700, user_data)
        if spec.authorized_key is not None:
            add("root/.ssh", 0o700)
            add("root/.ssh/authorized_keys", 0o600, f"{spec.authorized_key}\n".encode())
    return packed.getvalue()
