"""Waiting for an instance to call, and what to say when there is none."""

from __future__ import annotations

from dynamo.core.client import Client
from dynamo.core.errors import DeadlineError, NoInstancesError
from dynamo.core.membership import Membership
from dynamo.core.model import Instance

SHOWN = 5


async def await_instance(client: Client, wanted: int | str | None, timeout_s: float) -> None:
    """Wait until it can be called, any where ``wanted`` is None. Raises NoInstancesError."""
    membership = client._membership

    def there(membership: Membership) -> bool:
        return any(wanted in (None, one.instance_id, one.name) for one in membership.ready())

    try:
        what = "an instance" if wanted is None else f"instance {wanted}"
        await membership.wait_for(there, timeout_s, wanted=what)
    except DeadlineError as error:
        known = sorted(membership.ready(), key=lambda one: one.instance_id)
        if known:
            listed = ", ".join(map(_told, known[:SHOWN]))
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            raise NoInstancesError(f"{error}: {listed}{more}") from error
        others = await membership.others()
        advice = "start a worker that serves it, or check the name and where it is looked for"
        raise NoInstancesError(f"{error}; {others}; {advice}") from error


def _told(one: Instance) -> str:
    return str(one.instance_id) + (f" ({one.name})" if one.name else "")
