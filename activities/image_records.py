"""Images in the database and in the blob store: claim, download, verify, discard, settle, sweep."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

import aiohttp
import structlog
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from temporalio import activity

from activities import secrets
from activities.blob_claims import CLAIM, HOLD, all_needed, parameters, remove_unneeded
from activities.database import transaction
from activities.image_limits import take
from activities.images import HostImages, ImageFacts, lock_image, settle_image
from activities.placement import leased
from activities.runs import Histories, claim, others
from drivers import outbound, progress, registries
from drivers.archives import Inspection, Limits
from drivers.blobs import Blobs, storing
from drivers.images import engine_reference
from drivers.locked_file import LockedFile
from drivers.machines import Cancelled
from drivers.pace import Pace
from drivers.pace import said as pace_said
from model.base import Frozen
from model.errors import (
    BodyTooLarge,
    CairnError,
    ChecksumMismatch,
    ImageNotFound,
    ImageRefused,
    NotReady,
    RegistryBusy,
    Superseded,
    Unavailable,
    UrlRefused,
)
from model.hosts import Host, HostState
from model.images import CachedImage, Format, Image, ImageCache, ImageStatus, ImageWanted, engine_name, without_query
from model.keyring import Keyring
from model.metrics import BLOB_SWEEPS_REFUSED
from model.projects import Installation
from model.restores import restored
from model.workflows import Event, Failure, Order, Outcome

log = structlog.get_logger()
CHUNK = 1 << 20
#: A server may be silent for so long; what one is told to wait, at most.
SILENCE_SECONDS, LONGEST_WAIT = 60, 600.0
#: What no row needs is removed only when it has been there for so long: an upload names its row first, but a
#: database may have been restored.
STRAY = dt.timedelta(hours=1)
#: More of them than these, or than a tenth of what is stored, are left alone: is the database another one?
MOST_STRAYS = 5
TOO_MANY, SERVER_ERROR = 429, 500
#: A name that nobody knows, or a certificate that nobody trusts, may be a passing fault: a minute, about.
FEW_ATTEMPTS = 15
#: How long an image may wait for its upload.
UPLOAD_WITHIN, EXPIRED_AT_ONCE = dt.timedelta(days=1), 500


class ImageLimits(Frozen):
    """The settings that imports go by."""

    most_bytes: int
    most_unpacked_bytes: int
    cache_days: float


class Import(Frozen):
    """What is to be imported, and from where."""

    order: Order
    source: str
    #: Of a registry, and the host that is asked to pull it.
    reference: str | None = None
    host: str | None = None
    #: Whether a login lies ready for that host.
    login: bool = False
    #: Without its query, which may be a signature: what stands in histories is read by many. The whole is in the row.
    url: str | None = None
    #: What the user said that it is.
    checksum: str | None = None
    format: Format | None = None
    #: What came.
    digest: str | None = None


class ImageEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None
    facts: ImageFacts | None = None


class ImageRecords:
    """Runs on the control queue."""

    def __init__(
        self,
        engine: Engine,
        histories: Histories,
        blobs: Blobs,
        limits: ImageLimits,
        allow: Sequence[IPv4Network | IPv6Network],
        keyring: Keyring | None = None,
    ) -> None:
        self._engine = engine
        self._histories = histories
        self._blobs = blobs
        self._limits = limits
        self._allow = allow
        self._keyring = keyring

    @activity.defn(name="image.claim")
    def claim(self, order: Order) -> Import:
        """Claim the run, once no other run works on the image, and say what is to be done."""
        with transaction(self._engine, order.project_id) as session:
            image = lock_image(session, order)
            claim(session, order)
            if image.workflow_id != order.workflow_id:
                raise Superseded(f"workflow {image.workflow_id} works on image {order.name} now")
            in_the_way = others(session, order)
            host = _host(session) if image.source == "registry" and order.kind == "ImportImage" else None
            if host is not None:
                secrets.give_login(session, self._keyring, image, host)
        if in_the_way:
            raise NotReady(f"workflow {in_the_way[0]} still works on image {order.name}")
        return Import(
            order=order,
            source=image.source,
            reference=image.reference,
            host=None if host is None else host.name,
            login=host is not None and image.registry_secret is not None,
            url=without_query(image.url) if image.url is not None else None,
            checksum=image.checksum,
            format=image.format,
            digest=image.digest if image.source == "upload" else None,
        )

    @activity.defn(name="image.download", no_thread_cancel_exception=True)
    def download(self, asked: Import) -> str:
        """Bring the file of a URL into the blob store; its digest. Repeated, it begins anew."""
        with self._blobs.receive() as file:
            asked = asked.model_copy(update={"url": self._url(asked.order)})
            # A loop of its own: the client for strangers' URLs has no other form.
            asyncio.run(self._download(asked, file))
            _check(asked.checksum, file.digest)
            with transaction(self._engine, asked.order.project_id) as session:
                session.execute(HOLD, {"digest": file.digest})
                claimed = session.execute(CLAIM, parameters(asked.order.resource_id, file.digest)).one_or_none()
                if claimed is None:
                    raise Superseded(f"image {asked.order.name} is not being imported any more")
                take(session, asked.order.project_id, asked.order.resource_id, file.size)
            self._blobs.put(file)
            return file.digest

    def _url(self, order: Order) -> str:
        with transaction(self._engine, order.project_id) as session:
            mine = (Image.project_id == order.project_id) & (Image.id == order.resource_id)
            return session.scalars(select(Image.url).where(mine)).one() or ""

    async def _download(self, asked: Import, file: LockedFile) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)
        try:
            owner = asked.order.project_id
            async with (
                outbound.session(self._allow, timeout=timeout, owner=owner) as http,
                http.get(asked.url or "") as answer,
            ):
                if answer.status != 200:  # noqa: PLR2004 - OK
                    raise _refusal(answer)
                announced = answer.content_length
                if announced is not None and announced > self._limits.most_bytes:
                    raise BodyTooLarge(f"the file has {announced} bytes, more than {self._limits.most_bytes}")
                file.check_room(announced or 0)
                pace = Pace()
                async for piece in answer.content.iter_chunked(CHUNK):
                    if activity.is_cancelled():
                        raise Cancelled("downloading")
                    with storing():
                        file.write(piece)
                    if pace.is_too_slow(file.size):
                        raise Unavailable(f"the download was broken off: {pace_said()}")
                    if file.size > self._limits.most_bytes:
                        raise BodyTooLarge(f"the file has more than {self._limits.most_bytes} bytes")
                    progress.say(progress.of_bytes(file.size, announced))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken_off(error) from error

    @activity.defn(name="image.verify", no_thread_cancel_exception=True)
    def verify(self, asked: Import) -> ImageFacts:
        """Look at the file in the blob store from its beginning to its end."""
        if asked.digest is None:
            raise ImageRefused("nothing was stored")
        opened = self._blobs.open(asked.digest)

        def check(count: int) -> None:
            if activity.is_cancelled():
                raise Cancelled("verifying")
            progress.say(progress.of_bytes(count, opened.size))

        try:
            limits = Limits(unpacked_bytes=self._limits.most_unpacked_bytes)
            found = Inspection(limits, check).run(opened.source)
        finally:
            opened.source.close()
        _check(asked.digest, found.digest)
        if asked.format is not None and asked.format != found.format:
            raise ImageRefused(f"it is of the format {found.format}, not {asked.format}")
        return ImageFacts(digest=found.digest, size_bytes=found.size_bytes, format=found.format)

    @activity.defn(name="image.discard")
    def discard(self, order: Order) -> None:
        """Take what the image has out of the blob store, unless another image has the same."""
        with transaction(self._engine, order.project_id) as session:
            image = lock_image(session, order)
            if image.workflow_id != order.workflow_id:
                return  # what it has belongs to another run by now
            if image.digest is not None and image.source != "registry":
                remove_unneeded(session, self._blobs, image.digest, but=image.id)
                if order.kind == "ImportImage":
                    image.digest = image.size_bytes = None

    @activity.defn(name="image.settle")
    def settle(self, ended: ImageEnd) -> None:
        """End the run and move the image where the outcome leads, once."""
        steps = self._histories.steps(ended.order.workflow_id)
        with transaction(self._engine, ended.order.project_id) as session:
            settle_image(session, ended.order, ended.outcome, ended.failure, steps, ended.facts)
            if ended.outcome == "completed" and ended.facts is not None and ended.facts.host is not None:
                host = session.scalars(select(Host.id).where(Host.name == ended.facts.host)).one_or_none()
                if host is not None:
                    row = insert(ImageCache).values(
                        host_id=host, image_id=ended.order.resource_id, project_id=ended.order.project_id
                    )
                    session.execute(row.on_conflict_do_nothing())

    @activity.defn(name="image.caches")
    def caches(self, reported: HostImages) -> None:
        """Write down which images a host has. What it had from elsewhere it does not report: that is left as it is
        for as long as it is used."""
        with transaction(self._engine) as session:
            host = session.scalars(select(Host).where(Host.name == reported.host)).one_or_none()
            if host is None:  # removed meanwhile
                return
            here = {image.reference: image for image in reported.images}
            kept = session.scalars(select(Image).where(Image.status == ImageStatus.AVAILABLE)).all()
            gone = []
            for image in kept:
                found = _cached(image, here)
                if found is None:
                    gone.append(image.id)
                    continue
                row = insert(ImageCache).values(
                    host_id=host.id, image_id=image.id, project_id=image.project_id, used_at=found.used_at
                )
                index = ["host_id", "image_id"]
                session.execute(row.on_conflict_do_update(index_elements=index, set_={"used_at": found.used_at}))
            old = ImageCache.used_at < func.now() - dt.timedelta(days=self._limits.cache_days)
            lost = ImageCache.image_id.not_in([image.id for image in kept]) | (ImageCache.image_id.in_(gone) & old)
            session.execute(delete(ImageCache).where(ImageCache.host_id == host.id, lost))

    @activity.defn(name="image.sweep", no_thread_cancel_exception=True)
    def sweep(self) -> int:
        """Remove what no image needs from the blob store, and what killed processes were receiving; how many.

        What is older than the database cannot be what it has forgotten. Nor is anything removed where far too much
        is unknown: an empty database would empty the store of the one before, or of another installation.
        """
        with transaction(self._engine) as session:
            if restored(session):
                return 0
        self._expire()
        removed = self._blobs.sweep()
        for digest in self._strays():
            if activity.is_cancelled():
                raise Cancelled("sweeping")
            with transaction(self._engine) as session:
                if remove_unneeded(session, self._blobs, digest):
                    log.warning("blob.stray_removed", digest=digest)
                    removed += 1
        return removed

    def _strays(self) -> list[str]:
        """Files that no image needs, and that are ours to remove."""
        stored = list(self._blobs.all())
        with transaction(self._engine) as session:
            needed = all_needed(session)
            began = session.scalars(select(Installation.created_at)).one()
        before = dt.datetime.now(dt.UTC) - STRAY
        unknown = [(digest, since) for digest, since in stored if since < before and digest not in needed]
        strays = [digest for digest, since in unknown if since >= began]
        foreign = len(unknown) - len(strays)
        if len(unknown) > max(MOST_STRAYS, len(stored) // 10):
            told = {"unknown": len(unknown), "stored": len(stored), "older_than_database": foreign}
            BLOB_SWEEPS_REFUSED.inc()
            log.error("blob.too_many_strays", **told, first=unknown[0][0], hint="docs/images.md#where-files-are")
            return []
        if foreign:
            log.warning("blob.older_than_database", count=foreign, hint="docs/images.md#where-files-are")
        return strays

    def _expire(self) -> None:
        """End the wait of images that nobody has uploaded. (They take an upload all the same.)"""
        due = (Image.status == ImageStatus.PENDING) & (Image.updated_at < func.now() - UPLOAD_WITHIN)
        with transaction(self._engine) as session:
            found = session.execute(select(Image.project_id, Image.id).where(due).limit(EXPIRED_AT_ONCE)).all()
        for project_id, image_id in found:
            with transaction(self._engine, project_id) as session:
                image = session.scalars(select(Image).where(Image.id == image_id, due).with_for_update()).one_or_none()
                if image is None:
                    continue
                why = Failure(code="deadline_exceeded", message=f"nothing was uploaded within {UPLOAD_WITHIN.days} day")
                image.status, image.error = ImageStatus.ERROR, why.model_dump()
                image.digest = image.size_bytes = None
                image.version += 1
                image.updated_at = func.now()
                data = {"name": image.name, "from": ImageStatus.PENDING, "to": ImageStatus.ERROR}
                about = {"project_id": project_id, "resource_type": "image", "resource_id": image_id}
                session.execute(insert(Event).values(type="image.error", data=data, **about))


def to_collect(session: Session, every: dt.timedelta) -> list[str]:
    """Hosts whose caches are to be looked through; marks the look."""
    due = Host.images_at.is_(None) | (Host.images_at < func.now() - every)
    wanted = select(Host.id).where(leased, due).with_for_update(skip_locked=True)
    return list(
        session.scalars(update(Host).where(Host.id.in_(wanted)).values(images_at=func.now()).returning(Host.name))
    )


def _host(session: Session) -> Host:
    """The host that is asked to pull: of those that can be reached, one with containers, and little on it."""
    found = select(Host).where(leased, Host.state == HostState.READY)
    order = (Host.backend == "docker").desc(), Host.allocated_memory_mb / Host.memory_mb, Host.id
    host = session.scalars(found.order_by(*order).limit(1)).one_or_none()
    if host is None:
        raise NotReady("no host can be reached that could pull the image")
    return host


def _cached(image: Image, here: dict[str, CachedImage]) -> CachedImage | None:
    """The image among those of a host, by what engines call it."""
    if image.format is not None and image.digest is not None:
        return here.get(engine_name(image.id, image.digest))
    name = image.reference or ""
    by_tag = here.get(name)
    if by_tag is not None and by_tag.digest == image.digest:
        return by_tag
    return here.get(engine_reference(ImageWanted(reference=name, digest=image.digest)))


def _check(expected: str | None, actual: str) -> None:
    if expected is not None and expected != actual:
        raise ChecksumMismatch(f"the file has the checksum {actual}, not {expected}", expected=expected, actual=actual)


def _broken_off(error: Exception) -> CairnError:
    """What will not be better later is final, at once or after a few attempts. (Some errors carry the whole URL in
    their text, so it is not told.)"""
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | aiohttp.RedirectClientError):
        return UrlRefused("it is no URL that can be downloaded, or leads to one that is not")
    host = getattr(error, "host", None) or "its host"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        why = f"the name {host} is not known"
    elif isinstance(error, aiohttp.ClientSSLError):
        why = f"there is no TLS with {host} that can be trusted"
    else:
        said = "" if isinstance(error, aiohttp.ClientResponseError) else f": {error}"
        return Unavailable(f"the download broke off: {type(error).__name__}{said}")
    return ImageNotFound(why) if activity.info().attempt >= FEW_ATTEMPTS else Unavailable(why)


def _refusal(answer: aiohttp.ClientResponse) -> CairnError:
    said = f"{answer.url.host} answered {answer.status}"
    if answer.status == TOO_MANY or answer.status >= SERVER_ERROR:
        wait = registries.seconds(answer.headers.get("Retry-After", ""))
        if wait is not None:
            seconds = max(1.0, min(wait, LONGEST_WAIT))
            return RegistryBusy(f"{said}: come again in {seconds:g} s", retry_after_seconds=seconds)
        return Unavailable(said)
    return ImageNotFound(said)
