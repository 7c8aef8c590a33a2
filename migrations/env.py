"""Alembic's environment.  It runs over the connection that `gateway.store.migrate` hands it, and over no other."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from gateway.store.tables import JSON_TYPE, Base, UtcDateTime


def render_item(kind: str, item: Any, _autogen: Any) -> str | Literal[False]:
    """Write our types in plain SQLAlchemy: a migration must not change when the code that made it does."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, type(JSON_TYPE)):
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


def run() -> None:
    """Run the migrations in the transaction that the connection is in, so that a schema is never half of a version."""
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=render_item,
    )
    context.run_migrations()


run()
