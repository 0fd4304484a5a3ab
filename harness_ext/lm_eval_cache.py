"""lm-eval's own response cache (`--use_cache`), kept apart by all that changes a response."""

from typing import Any

from interventions.fingerprint import digest


def separate(database: Any, settings: Any) -> None:
    """Give responses under `settings` a table of their own: the cache's key knows none of them.

    Args:
        database: of lm-eval's cache hook, or None.
        settings: plain data.
    """
    if database is None:
        return
    table = f"sae_steered_{digest(settings)}"
    database.conn.execute(
        f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT PRIMARY KEY, value BLOB)'
    )
    database.conn.commit()
    database.tablename = table
