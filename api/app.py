"""The application: routes, errors, and what runs beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from uuid import UUID

from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client

from activities.placement import Capacity
from api import (
    account,
    agent_joining,
    agent_leases,
    agent_reports,
    audit,
    auth,
    balancer_stats,
    balancer_targets,
    balancers,
    bindings,
    blobs,
    cache_volumes,
    chats,
    credentials,
    cron,
    cron_runs,
    dashboard,
    deployments,
    errors,
    events,
    groups,
    guard,
    health,
    hosts,
    image_uploads,
    images,
    instance_types,
    instances,
    invitations,
    keys,
    master_keys,
    members,
    metrics,
    openapi,
    policies,
    pools,
    preferences,
    project_quotas,
    projects,
    restores,
    retries,
    roles,
    samples,
    secrets,
    service_account_keys,
    service_accounts,
    session_files,
    signing,
    ssh_keys,
    streams,
    terminals,
    users,
    webhooks,
    work_agents,
    work_session_changes,
    work_sessions,
    workflows,
    workspaces,
)
from api.agent_client import Agents
from api.bells import Bells
from api.denials import Denials
from api.dispatcher import Dispatcher
from api.event_hub import Hub
from api.hashing import Hashing
from api.http import Http
from api.joins import Joins
from api.key_use import KeyUse
from api.limits import Limits
from api.mails import Mails
from api.open_streams import OpenStreams
from api.pulse import beat
from drivers.blobs import Blobs
from model.settings import Settings

DRAIN_SECONDS = 5


def create_app(settings: Settings, engine: AsyncEngine, temporal: Client, store: Blobs) -> FastAPI:
    """The API on a database and a (lazily connected) Temporal client; it owns neither."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        beside = [
            asyncio.create_task(work)
            for work in (
                app.state.dispatcher.run(),
                app.state.bells.run(),
                app.state.events.run(),
                app.state.open_streams.run(),
                app.state.key_use.run(),
                app.state.mails.run(),
                app.state.denials.run(),
                app.state.limits.run(),
                beat(engine),
            )
        ]
        yield
        app.state.stopping.set()
        await app.state.dispatcher.drain(DRAIN_SECONDS)
        for task in beside:
            task.cancel()
        app.state.hashing.close()
        await app.state.key_use.flush()
        await app.state.denials.write()
        await app.state.agents.close()
        await app.state.limits.close()

    app = FastAPI(
        title="Cairn",
        version=version("cairn-platform"),
        summary="Provisioning where every change is a durable workflow",
        lifespan=lifespan,
        # A path is right or wrong: a redirect would answer before the key was looked at.
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.temporal = temporal
    app.state.dispatcher = Dispatcher(temporal, engine)
    app.state.bells = Bells(settings.database)
    app.state.limits = Limits(settings)
    app.state.tokens = partial(signing.tokens, app)
    app.state.agents = Agents(settings.ticket_key)
    app.state.joins = Joins(app.state.agents)
    app.state.open_streams = OpenStreams(engine, settings.project_streams, events=settings.project_event_streams)
    app.state.hashing = Hashing()
    app.state.key_use = KeyUse(engine)
    app.state.mails = Mails(engine, settings)
    #: Set when the process has been told to end: it is not ready any more, and goes on answering.
    app.state.leaving = asyncio.Event()
    #: Set when it ends: nothing is waited for any longer.
    app.state.denials = Denials(engine)
    app.state.audit_places = set[UUID]()
    app.state.stopping = asyncio.Event()
    app.state.blobs = store
    app.state.events = Hub(engine, app.state.bells, app.state.stopping)
    app.state.capacity = Capacity(
        port_range=settings.port_range,
        overcommit_cpu=settings.overcommit_cpu,
        overcommit_memory=settings.overcommit_memory,
    )
    app.state.metrics = metrics.of_app(app)
    errors.install(app)
    # Agents before hosts: their paths are not ids.
    of_projects = (
        instances,
        groups,
        policies,
        deployments,
        balancers,
        balancer_targets,
        images,
        image_uploads,
        workspaces,
        work_sessions,
        work_session_changes,
        session_files,
        work_agents,
        chats,
        preferences,
        credentials,
        cache_volumes,
        pools,
        blobs,
        streams,
        terminals,
        workflows,
        retries,
        events,
        webhooks,
        cron,
        cron_runs,
        dashboard,
        secrets,
        audit,
    )
    of_platform = (
        agent_joining,
        agent_leases,
        agent_reports,
        samples,
        balancer_stats,
        hosts,
        instance_types,
        ssh_keys,
        projects,
        restores,
        master_keys,
        health,
        metrics,
    )
    of_people = auth, account, keys, users
    of_teams = project_quotas, members, invitations, roles, bindings, service_accounts, service_account_keys
    modules = (*of_people, *of_teams, *of_projects, *of_platform)
    routers = [*(module.router for module in modules), samples.members, balancer_stats.members]
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    openapi.install(app)
    app.add_api_websocket_route("/{path:path}", streams.nowhere)
    guard.install(app, settings, errors.render)
    app.add_middleware(Http, bug=errors.bug, leaving=app.state.leaving, trusted=settings.trusted_proxies)
    return app
