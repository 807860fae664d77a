"""`reflect migrate`: bring a ledger's tables to the present version."""

import functools
from typing import Any

from reflect_middleware.cli_open import opened
from reflect_middleware.cli_view import View
from reflect_middleware.reflection import Reflection


@opened(creates=True)
def _migrate(reflection: Reflection, view: View) -> None:
    """Make a new ledger's tables, or bring an old ledger's to the present (PostgreSQL; a file does it by itself)."""
    database = reflection._core.parts.ledger.database  # noqa: SLF001 - schemas are no business of the object
    before, now = database.migrate()
    if before is None:
        said = f"Made the tables, schema {now}."
    else:
        said = f"Schema {now} already: nothing to do." if before == now else f"From schema {before} to {now}."
    view.say(f"{database.url_shown}: {said}", ledger=database.url_shown, before=before, now=now)


@functools.wraps(_migrate)
def migrate(**values: Any) -> None:
    """The tables belong to all namespaces: none need be named."""
    _migrate(**values | {"namespace": values["namespace"] or "default"})


migrate.__name__ = "migrate"
