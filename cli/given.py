"""What the options that every command has were given (they are in ``cli.everywhere``)."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Given:
    """Of one run of the program; ``forget`` makes it that of the next."""

    context: str | None = None
    api_url: str | None = None
    debug: bool = False
    watch: bool = False
    #: Data is written as YAML instead of JSON.
    yaml: bool = False
    #: A command to be run in an instance is set apart by --.
    dashes: bool = False
    #: The command that runs, such as ``lb create``, and its options: messages name these.
    command: str = ""
    options: frozenset[str] = frozenset()

    def forget(self) -> None:
        for field in fields(self):
            setattr(self, field.name, field.default)


given = Given()
