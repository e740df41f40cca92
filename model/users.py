"""Users, what they show of themselves, and what they are in projects."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import String

from model.base import Base, EmptyObject, Id, Now

Words = ARRAY(String)


class User(Base):
    """Belongs to no project. ``email`` is in lower case."""

    __tablename__ = "users"

    id: Mapped[Id]
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    #: Argon2id, in its own encoding; null: nobody can log in as this user before a password was set.
    password_hash: Mapped[str | None]
    #: Since when it is known that the address is theirs; null: they only said so.
    verified_at: Mapped[dt.datetime | None]
    #: A platform administrator.
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Where a request goes that names no project. Null only while the user is being made or deleted.
    default_project_id: Mapped[UUID | None] = mapped_column(ForeignKey("projects.id", use_alter=True))
    #: Since the last that succeeded, from addresses not known; and until when no other from such is looked at.
    failed_logins: Mapped[int] = mapped_column(server_default=text("0"))
    locked_until: Mapped[dt.datetime | None]
    deactivated_at: Mapped[dt.datetime | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]


class LoginAddress(Base):
    """Somebody tried to log in as the user from there, and maybe did."""

    __tablename__ = "login_addresses"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    #: An IPv4 address, or the network that an IPv6 address belongs to.
    address: Mapped[str] = mapped_column(primary_key=True)
    #: Wrong passwords in a row, and until when no other from there is looked at.
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    locked_until: Mapped[dt.datetime | None]
    #: The last time; and the last that it was the right password.
    used_at: Mapped[Now]
    logged_in_at: Mapped[dt.datetime | None]

    __table_args__ = (Index("ix_login_addresses_used_at", "used_at"),)


class Session(Base):
    """A login. Its access tokens name it, so that ending it ends them."""

    __tablename__ = "sessions"

    id: Mapped[Id]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[Now]
    last_used_at: Mapped[Now]
    expires_at: Mapped[dt.datetime]
    ended_at: Mapped[dt.datetime | None]

    __table_args__ = (Index("ix_sessions_user", "user_id"), Index("ix_sessions_expires_at", "expires_at"))


class RefreshToken(Base):
    """Each is used once, for the next. One that comes again was stolen, or its theft was: the session ends."""

    __tablename__ = "refresh_tokens"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    created_at: Mapped[Now]
    used_at: Mapped[dt.datetime | None]

    __table_args__ = (Index("ix_refresh_tokens_session", "session_id"),)


class PasswordReset(Base):
    """A token by mail, of which the digest is kept. Used once."""

    __tablename__ = "password_resets"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[Now]
    expires_at: Mapped[dt.datetime]

    __table_args__ = (
        Index("ix_password_resets_user", "user_id"),
        Index("ix_password_resets_expires_at", "expires_at"),
    )


class Mail(Base):
    """To be sent by any API process, at least once. What is secret in it is made as it is sent, so none is here."""

    __tablename__ = "mails"

    id: Mapped[Id]
    #: What it says (``api/mails.py``).
    kind: Mapped[str]
    #: An address; of a kind that anybody may ask for, maybe nobody's.
    recipient: Mapped[str]
    #: What a kind needs beside it.
    about: Mapped[EmptyObject]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[Now]
    #: Not before; ahead of now also while a process sends it.
    next_at: Mapped[Now]

    __table_args__ = (
        # What anybody may ask for: one at a time.
        Index("uq_mails_kind_recipient", "kind", "recipient", unique=True, postgresql_where=text("about = '{}'")),
        Index("ix_mails_next_at", "next_at"),
    )


class ServiceAccount(Base):
    """Somebody in one project who is no person: it has keys, and roles by bindings."""

    __tablename__ = "service_accounts"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("project_id", "id"), UniqueConstraint("project_id", "name"))


class Role(Base):
    """A project's own. The built-in ones are in ``model/permissions.py``, and their names are nobody else's."""

    __tablename__ = "roles"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    permissions: Mapped[list[str]] = mapped_column(Words)
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Now]
    updated_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("project_id", "name"),)


class Binding(Base):
    """Somebody has a role in a project. Users who have one are its members."""

    __tablename__ = "bindings"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    service_account_id: Mapped[UUID | None]
    role_name: Mapped[str]
    created_at: Mapped[Now]

    __table_args__ = (
        CheckConstraint("num_nonnulls(user_id, service_account_id) = 1", name="one_subject"),
        ForeignKeyConstraint(
            ["project_id", "service_account_id"],
            ["service_accounts.project_id", "service_accounts.id"],
            ondelete="CASCADE",
        ),
        Index(
            "uq_bindings_subject",
            "project_id",
            text("coalesce(user_id, service_account_id)"),
            "role_name",
            unique=True,
        ),
        Index("ix_bindings_user", "user_id"),
    )


class Invitation(Base):
    """Somebody may become a member: who has the token that went to this address, and logs in with it."""

    __tablename__ = "invitations"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    email: Mapped[str]
    role_name: Mapped[str]
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    #: For people; and who it was, whose rights count when it is accepted. Both null: nobody's, it is void.
    invited_by: Mapped[str]
    inviter_user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    inviter_account_id: Mapped[UUID | None]
    created_at: Mapped[Now]
    expires_at: Mapped[dt.datetime]
    #: Since when its token is one that went out by mail alone.
    mailed_at: Mapped[dt.datetime | None]
    accepted_at: Mapped[dt.datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "inviter_account_id"],
            ["service_accounts.project_id", "service_accounts.id"],
            ondelete="CASCADE",
        ),
    )
