"""Databases that the migrations made."""

from tests.services import database

__all__ = ["database"]
