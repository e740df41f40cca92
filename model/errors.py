"""One family of errors, from driver to REST answer.

Each class fixes its ``code`` (what clients branch on), its HTTP ``status`` and whether a workflow
may try the failed step again. Never branch on message text: a message names the thing, what was
expected and what to do next, for people.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CairnError(Exception):
    """Base of every error that Cairn raises on purpose."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


# What a request can meet.
class Malformed(CairnError):
    code, status = "malformed", 400


class Unauthenticated(CairnError):
    code, status = "unauthenticated", 401


class Forbidden(CairnError):
    code, status = "forbidden", 403


class ProjectInactive(CairnError):
    """The project was deactivated: nothing is done in it before it is active again."""

    code, status = "project_inactive", 403


class RegistrationClosed(CairnError):
    """Nobody becomes a user by asking."""

    code, status = "registration_closed", 403


class MailsOff(CairnError):
    """What was asked for comes by mail, and the platform sends none."""

    code, status = "mails_off", 403


class AddressUnproved(CairnError):
    """Nobody knows whether the user of an address is who has it."""

    code, status = "address_unproved", 409


class NotFound(CairnError):
    code, status = "not_found", 404


class InvalidState(CairnError):
    """The current state forbids the move; details: ``state`` and, when known, ``workflow_id`` in the way."""

    code, status = "invalid_state", 409


class NameTaken(CairnError):
    code, status = "name_taken", 409


class VersionRefused(CairnError):
    """An agent's version is one that the platform does not work with."""

    code, status = "version_refused", 409


class InUse(CairnError):
    """Something else needs what was to be deleted."""

    code, status = "in_use", 409


class WorkspaceMoved(CairnError):
    """The workspace is at another commit than the one that a session's changes follow."""

    code, status = "workspace_moved", 409


class Managed(CairnError):
    """What was to be changed belongs to something else, which is to be changed instead; details: ``managed_by``."""

    code, status = "managed", 409


class LastOwner(CairnError):
    """The project would be left with nobody who owns it."""

    code, status = "last_owner", 409


class IdempotencyMismatch(CairnError):
    code, status = "idempotency_mismatch", 409


class PreconditionFailed(CairnError):
    code, status = "precondition_failed", 412


class BodyTooLarge(CairnError):
    code, status = "body_too_large", 413


class UnsupportedMediaType(CairnError):
    code, status = "unsupported_media_type", 415


class RangeNotThere(CairnError):
    """Of a file, a part was asked for that begins behind its end; details: ``size``."""

    code, status = "range_not_there", 416


class ValidationFailed(CairnError):
    """details: ``fields`` = [{field, message}]."""

    code, status = "validation_failed", 422


class UrlRefused(CairnError):
    """A URL that a user gave leads, by itself or by a redirect, to where the platform does not go."""

    code, status = "url_refused", 422


class UnreachableTarget(CairnError):
    """The load balancer has no way to the instance; details: ``instance_id``, ``port``."""

    code, status = "unreachable_target", 422


class QuotaExceeded(CairnError):
    code, status = "quota_exceeded", 429


class WorkflowFailed(CairnError):
    """A workflow that the caller waited for did not complete; details: ``workflow_id``, ``error``."""

    code, status = "workflow_failed", 502


class Unavailable(CairnError):
    code, status, retryable = "unavailable", 503, True


class Restored(CairnError):
    """The platform was restored from a backup, and its operator has not finished that."""

    code, status, retryable = "restored", 503, True


class Unresolved(CairnError):
    """Differences are left that nobody has decided about; the message names the first of them."""

    code, status = "unresolved", 409


class RateLimited(CairnError):
    """More requests than the key, the user or the address may send; details: ``retry_after_seconds``, ``limit``."""

    code, status, retryable = "rate_limited", 429, True


class TooManyStreams(CairnError):
    """As many streams as are allowed are open already."""

    code, status, retryable = "too_many_streams", 429, True


class TooManyImports(CairnError):
    """The project imports as many images as it may at once; details: ``limit``."""

    code, status, retryable = "too_many_imports", 429, True


class HostBusy(CairnError):
    """The host makes as many images usable as it may at once; the step waits for its turn."""

    code, status, retryable = "host_busy", 503, True


class HostUnreachable(CairnError):
    """The host's lease has lapsed, or its agent does not answer; details: ``host``."""

    code, status, retryable = "host_unreachable", 503, True


class AgentUnavailable(CairnError):
    """Nothing answers where the agent of a work session should, or it broke off."""

    code, status, retryable = "agent_unavailable", 502, True


class PortClosed(CairnError):
    """Nothing listens at a port of a sandbox."""

    code, status, retryable = "port_closed", 502, True


class AgentFailed(CairnError):
    """The agent of a work session refused a prompt, failed at it, or does not keep to its contract."""

    code, status = "agent_failed", 502


class CommandTimeout(CairnError):
    """A command inside an instance took too long, and was ended; details: what it had written until then."""

    code, status = "command_timeout", 504


class OutcomeUnknown(CairnError):
    """The way to a command that was sent broke: it may have run, in part or whole. Trying again may run it twice."""

    code, status = "outcome_unknown", 502


# What a plan can meet. A request sees the first two only when a read at acceptance shows them.
class PortTaken(CairnError):
    """Somebody else holds the host port; details: ``port``."""

    code, status = "port_taken", 409


class NoCapacity(CairnError):
    code, status = "no_capacity", 409


class NeedsStop(CairnError):
    """The engine cannot change the machine as it runs; it can while it is stopped."""

    code, status = "needs_stop", 409


class NeedsRecreate(CairnError):
    """The engine cannot change this machine; it can make another, without what this one wrote."""

    code, status = "needs_recreate", 409


class ImageNotFound(CairnError):
    code, status = "image_not_found", 422


class RegistryBusy(CairnError):
    """A registry asks to come again later; details: ``retry_after_seconds``, which the step waits."""

    code, status, retryable = "registry_busy", 503, True


class ImageRefused(CairnError):
    """The file is not an image that can be used, or not a safe one; the message says where it is wrong."""

    code, status = "image_refused", 422


class ChecksumMismatch(CairnError):
    """What came is not what was announced; details: ``expected``, ``actual``."""

    code, status = "checksum_mismatch", 422


class FetchFailed(CairnError):
    """Git did not bring a repository; the message ends with its words."""

    code, status = "fetch_failed", 422


class PathRefused(CairnError):
    """A folder that a host's operator does not allow to be copied, or that is not there."""

    code, status = "path_refused", 422


class WorkspaceTooLarge(CairnError):
    """A workspace, with the repository that it is of, would take more than CAIRN_WORKSPACE_MAX_BYTES."""

    code, status = "workspace_too_large", 413


class ForeignObject(CairnError):
    """The engine holds an object of our name that does not carry our labels. It is never touched."""

    code, status = "foreign_object", 409


class InstanceExited(CairnError):
    """The instance's process ended, or its health check failed, before it was ready."""

    code, status = "instance_exited", 502


class Unhealthy(CairnError):
    """The instance runs, and its health check did not pass in time."""

    code, status = "unhealthy", 502


class EngineRefused(CairnError):
    """The engine understood the call and refused it; trying again cannot help."""

    code, status = "engine_refused", 502


class EngineUnavailable(CairnError):
    """The engine cannot be reached, or its answer is ambiguous. Tried again until the deadline."""

    code, status, retryable = "engine_unavailable", 503, True


class Unsupported(CairnError):
    """The driver lacks a capability; details: ``capability``, ``driver``."""

    code, status = "unsupported", 422

    def __init__(self, capability: str, driver: str) -> None:
        super().__init__(f"the {driver} driver cannot do '{capability}'", capability=capability, driver=driver)


class DeadlineExceeded(CairnError):
    code, status = "deadline_exceeded", 502


class NotReady(CairnError):
    """What a step waits for is not there yet; the step's retry policy polls."""

    code, status, retryable = "not_ready", 409, True


class LeaseLapsed(CairnError):
    """What is fenced is not started on a host whose lease has lapsed: it may run elsewhere by now, or soon."""

    code, status, retryable = "lease_lapsed", 503, False


class HostIsBack(CairnError):
    """The host that was lost is there again: what was to be placed elsewhere stays."""

    code, status = "host_is_back", 409


class Superseded(CairnError):
    """Another workflow owns the resource now: this run stops, and undoes what it did."""

    code, status = "superseded", 409


class FaultInjected(CairnError):
    """An injected fault of the action ``error`` or ``lose_answer``."""

    code, status, retryable = "fault_injected", 503, True
