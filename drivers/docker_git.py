"""Git in containers of its own, which end with what it was asked: no program of a repository and no answer of a server
ever meets the host.

A sandbox has a read-only root, no capability, and nothing mounted but what it works on. Its network is none; where it
fetches, a proxy listens in it, which this process serves from outside, and which reaches the one server of the URL.
Its first process sleeps for as long as all may take: one that this process forgot, as it died, ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import docker.errors
from docker import APIClient
from docker.types import Mount

from drivers import docker_ends, git_words, namespaces, outbound, progress
from drivers.docker_engine import DockerEngine, calling, changing
from drivers.egress_proxy import EgressProxy
from drivers.machines import Cancelled, Check
from drivers.ownership import PREFIX
from drivers.secret_files import SecretFiles
from model.errors import DeadlineExceeded, EngineRefused, EngineUnavailable, FetchFailed
from model.git_urls import GitUrl
from model.networks import PROXY_ADDRESS, PROXY_PORT
from model.workspaces import GitLogin

KIND = "git"
MEMORY, PIDS, CPU_PERIOD, CPUS = "1g", 128, 100_000, 2
LOOK_SECONDS = 0.25
BACKLOG = 64
MOST_OUTPUT = 4 << 20
#: The exit code of what the kernel killed, as it does where all memory is used.
KILLED = 137
#: Of what git writes on the side, lines that are remembered.
MOST_LINES = 50
#: Pieces of it that wait to be looked at.
MOST_AHEAD = 64
#: Of the output, and of what is written on the side.
Piece = tuple[bytes | None, bytes | None]
Pieces = queue.Queue[Piece | None]


def name_of(workspace: UUID) -> str:
    """The same at every attempt: what an earlier one left is found."""
    return f"cairn-{KIND}-{workspace}"


class GitSandboxes:
    """Those of one engine, for one owner."""

    def __init__(
        self,
        engine: DockerEngine,
        files: SecretFiles,
        *,
        user: str,
        seconds: float,
        networks: outbound.Networks,
        authorities: bytes | None,
    ) -> None:
        """``user``: as whom git runs. ``seconds``: for one sandbox. ``authorities``: that it trusts, instead of its
        image's."""
        self._engine = engine
        self._files = files
        self._user = user
        self._seconds = seconds
        self._networks = networks
        self._authorities = authorities
        self._open: dict[str, UUID] = {}

    @contextmanager
    def opened(
        self,
        workspace: UUID,
        project_id: UUID,
        image: str,
        folders: Mapping[str, Path],
        cancelled: Check,
        *,
        url: GitUrl | None = None,
        login: GitLogin | None = None,
        check: Callable[[], None] = lambda: None,
        shown: Mapping[str, Path] | None = None,
    ) -> Iterator[GitSandbox]:
        """A sandbox with these folders of the host, by where it sees them. ``url``: what it may fetch.

        ``check`` is asked again and again while git runs, and may raise what ends it. ``shown``: folders that it can
        only read, whoever their files are of: what is written in a session's sandbox is root's, and may be for root
        alone.
        """
        self.end(workspace)
        proxied = f"{PROXY_ADDRESS} {PROXY_PORT}" if url is not None else None
        given = git_words.files_for(url, login, self._authorities, proxied)
        name = name_of(workspace)
        client = APIClient(self._engine.base_url, version=self._engine.client.api_version, timeout=int(self._seconds))
        self._open[name] = workspace
        try:
            folder = self._files.write(workspace, 0, given)
            with calling(), changing(cancelled):
                read_only = {git_words.FOLDER: folder, **(shown or {})}
                reader = as_reader() if shown else None
                made = self._create(client, name, workspace, project_id, image, read_only, folders, url, reader)
                client.start(made)
                pid = int(client.inspect_container(made)["State"]["Pid"])
            with self._outlet(workspace, pid, url) as proxy:
                yield GitSandbox(client, made, cancelled, check, login, self._seconds, proxy)
        finally:
            client.close()
            self.end(workspace)
            self._open.pop(name, None)

    def _create(
        self,
        client: APIClient,
        name: str,
        workspace: UUID,
        project_id: UUID,
        image: str,
        given: Mapping[str, Path],
        folders: Mapping[str, Path],
        url: GitUrl | None,
        reader: tuple[str, list[str]] | None = None,
    ) -> str:
        """``reader``: as whom git runs instead, and with which capabilities."""
        user, capabilities = reader or (self._user, [])
        mounts = [Mount(target=at, source=str(path), type="bind", read_only=True) for at, path in given.items()]
        mounts += [Mount(target=at, source=str(path.resolve()), type="bind") for at, path in folders.items()]
        host_config = client.create_host_config(
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            cap_add=capabilities,
            security_opt=["no-new-privileges"],
            pids_limit=PIDS,
            mem_limit=MEMORY,
            memswap_limit=MEMORY,
            cpu_period=CPU_PERIOD,
            cpu_quota=CPUS * CPU_PERIOD,
            init=True,
            auto_remove=True,
            tmpfs={"/tmp": "rw,noexec,nosuid,nodev,size=64m"},  # noqa: S108 - of a container of its own
            mounts=mounts,
        )
        owner = self._engine.owner
        labels = {
            f"{PREFIX}.installation": str(owner.installation),
            f"{PREFIX}.host": str(owner.host_id),
            f"{PREFIX}.kind": KIND,
            f"{PREFIX}.project": str(project_id),
            f"{PREFIX}.id": str(workspace),
        }
        proxy = {} if url is None else {"https_proxy": f"http://{PROXY_ADDRESS}:{PROXY_PORT}"}
        made = client.create_container(
            image,
            entrypoint=["/bin/sleep"],
            command=[str(int(self._seconds))],
            user=user,
            name=name,
            working_dir="/",
            environment=git_words.ENVIRONMENT | proxy,
            labels=labels,
            host_config=host_config,
        )
        return str(made["Id"])

    @contextmanager
    def _outlet(self, workspace: UUID, pid: int, url: GitUrl | None) -> Iterator[EgressProxy | None]:
        """A proxy in the sandbox's network that reaches the one server, for as long as this lasts."""
        if url is None:
            yield None
            return
        try:
            with open(f"/proc/{pid}/ns/net", "rb") as namespace:
                listener = namespaces.listen(namespace.fileno(), (PROXY_ADDRESS, PROXY_PORT), BACKLOG)
        except OSError as error:
            raise EngineRefused(
                f"this agent cannot enter the network of its containers ({error.strerror}): see docs/hosts.md"
            ) from error
        proxy = EgressProxy(workspace, [f"{url.host}:{url.port}"], self._networks)
        started, ending = threading.Event(), list[Callable[[], object]]()

        async def serve() -> None:
            loop, serving = asyncio.get_running_loop(), asyncio.ensure_future(proxy.serve(listener))
            ending.append(lambda: loop.call_soon_threadsafe(serving.cancel))
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="git-outlet", daemon=True)
        thread.start()
        started.wait(10)
        try:
            yield proxy
        finally:
            for end in ending:
                end()
            thread.join(10)

    def end(self, workspace: UUID) -> None:
        """Remove the sandbox of the workspace, whoever made it. Success when there is none."""
        with calling():
            self._remove({"label": [*self._filters(), f"{PREFIX}.id={workspace}"]})
        self._files.remove(workspace)

    def end_forgotten(self) -> None:
        """The same of all that nobody in this process works with."""
        with calling():
            self._remove({"label": self._filters()}, but=self._open)
        # An agent that died may have left a credential, whether its sandbox ended by itself or was never made.
        self._files.sweep({(workspace, 0) for workspace in list(self._open.values())})

    def _filters(self) -> list[str]:
        owner = self._engine.owner
        return [
            f"{PREFIX}.installation={owner.installation}",
            f"{PREFIX}.host={owner.host_id}",
            f"{PREFIX}.kind={KIND}",
        ]

    def _remove(self, filters: dict[str, Any], but: Collection[str] = ()) -> None:
        client = self._engine.client
        for found in client.containers(all=True, filters=filters):
            name = found["Names"][0].removeprefix("/")
            # The name is part of the proof.
            if name == name_of_labels(found["Labels"] or {}) and name not in but:
                docker_ends.remove(client, found["Id"])


def name_of_labels(labels: Mapping[str, str]) -> str:
    return f"cairn-{KIND}-{labels.get(f'{PREFIX}.id')}"


class GitSandbox:
    """One that runs, for one thread."""

    def __init__(
        self,
        client: APIClient,
        engine_id: str,
        cancelled: Check,
        check: Callable[[], None],
        login: GitLogin | None,
        seconds: float,
        proxy: EgressProxy | None,
    ) -> None:
        self._client = client
        self._proxy = proxy
        self._engine_id = engine_id
        self._cancelled = cancelled
        self._check = check
        self._login = login
        self._until = time.monotonic() + seconds

    def git(
        self,
        *words: str,
        at: str = "/",
        env: Mapping[str, str] | None = None,
        what: str,
        fine: Collection[int] = (0,),
        most: int | None = None,
        exact: bool = False,
    ) -> str:
        """What git writes. Raises FetchFailed, which says ``what`` failed and git's last words; Cancelled.

        ``fine``: exit codes that are none of a failure. ``most``: bytes, of which one more may come; the rest of what
        it would have written is not waited for. ``exact``: what is no UTF-8 raises UnicodeDecodeError, instead of being
        shown as �.
        """
        if self._proxy is not None:
            self._proxy.refused = None
        return self._said(["git", *words], at, env, what=what, fine=fine, most=most, exact=exact)

    def shell(self, script: str, *, at: str, env: Mapping[str, str], what: str) -> str:
        """What a script writes that is ours, and the same for every repository. Raises as ``git`` does."""
        return self._said(["sh", "-c", script], at, env, what=what)

    def _said(
        self,
        argv: list[str],
        at: str,
        env: Mapping[str, str] | None,
        *,
        what: str,
        fine: Collection[int] = (0,),
        most: int | None = None,
        exact: bool = False,
    ) -> str:
        code, output, said = self._run(argv, at, env or {}, most)
        if code == KILLED:
            raise FetchFailed(f"{what}: git took more memory than it may have")
        if code not in fine:
            last = git_words.last_words(said, self._login) or f"exit code {code}"
            # Git knows only that its proxy did not reach the server; the proxy not what git asked it for.
            refused = self._proxy.refused if self._proxy is not None else None
            raise FetchFailed(f"{what}: {refused} ({last})" if refused else f"{what}: {last}")
        cut = most is not None and len(output) > most
        return output.decode(errors="strict" if exact and not cut else "replace")

    def succeeds(self, *words: str, at: str = "/") -> bool:
        """Whether git finds it so."""
        return self._run(["git", *words], at, {})[0] == 0

    def _run(
        self, argv: Sequence[str], at: str, env: Mapping[str, str], most: int | None = None
    ) -> tuple[int, bytes, list[str]]:
        with calling():
            command = self._client.exec_create(self._engine_id, list(argv), environment=dict(env), workdir=at)["Id"]
            stream = self._client.exec_start(command, stream=True, demux=True)
        output, lines, rest = bytearray(), list[str](), ""
        with _read(stream) as pieces:
            while True:
                try:
                    piece = pieces.get(timeout=LOOK_SECONDS)
                except queue.Empty:
                    piece = (None, None)
                if piece is None:
                    break
                self._look()
                output += piece[0] or b""
                if most is not None and len(output) > most:
                    return 0, bytes(output[: most + 1]), lines
                if len(output) > MOST_OUTPUT:
                    raise FetchFailed(f"git wrote more than {MOST_OUTPUT >> 20} MiB")
                rest += (piece[1] or b"").decode(errors="replace")
                *whole, rest = rest.replace("\r", "\n").split("\n")
                rest = rest[-1000:]
                for line in whole:
                    if (far := git_words.told(line)) is not None:
                        progress.say(far)
                    lines = [*lines, line[:1000]][-MOST_LINES:]
        self._look()
        try:
            code = self._client.exec_inspect(command)["ExitCode"]
        except (docker.errors.APIError, OSError) as error:
            raise EngineUnavailable("the sandbox of git ended before it did") from error
        if code is None:
            raise EngineUnavailable("the sandbox of git ended before it did")
        return int(code), bytes(output), [*lines, rest]

    def _look(self) -> None:
        """Raises what ends it: Cancelled, DeadlineExceeded, what its check says."""
        if self._cancelled():
            raise Cancelled("git")
        if time.monotonic() > self._until:
            raise DeadlineExceeded("git took longer than it may (CAIRN_DEADLINE_WORKSPACE)")
        self._check()


@contextmanager
def _read(stream: Any) -> Iterator[Pieces]:
    """What comes of it, read by another thread, no further ahead than so many pieces; None: there is no more. Who has
    read enough ends both."""
    pieces: Pieces = queue.Queue(MOST_AHEAD)
    enough = threading.Event()
    reader = threading.Thread(target=_pump, args=(stream, pieces, enough), name="git-reader", daemon=True)
    reader.start()
    try:
        yield pieces
    finally:
        enough.set()
        with contextlib.suppress(Exception):  # it has ended by itself
            stream.close()


def _pump(stream: Any, pieces: Pieces, enough: threading.Event) -> None:
    try:
        for piece in stream:
            if not _put(piece, pieces, enough):
                return
    except Exception:  # noqa: S110 - the sandbox was removed meanwhile, which its caller finds out
        pass
    finally:
        _put(None, pieces, enough)


def _put(piece: Piece | None, pieces: Pieces, enough: threading.Event) -> bool:
    """Once there is room; whether it is still wanted."""
    while not enough.is_set():
        try:
            pieces.put(piece, timeout=LOOK_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def as_reader() -> tuple[str, list[str]]:
    """As whom git reads what sessions have written, and with which capabilities: root that sees each file, and no more;
    without root's rights this process's own user."""
    if os.geteuid() == 0:
        return "0:0", ["DAC_OVERRIDE"]
    return as_user()[0], []


def as_user() -> tuple[str, int | None]:
    """As whom git runs, and whose its files are made: nobody; without root's rights this process's own user."""
    if os.geteuid() == 0:
        return "65534:65534", 65534
    return f"{os.geteuid()}:{os.getegid()}", None
