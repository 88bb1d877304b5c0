"""Who holds what leaked: finds the tensors that the test made and left, and asks the ledger for their owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_memleak.checks.leak import Owners
from pytest_memleak.events import garbage
from pytest_memleak.events.storages import tensors_among
from pytest_memleak.hooks import known_caches
from pytest_memleak.insides import named_holders
from pytest_memleak.meters.reading import Reading

if TYPE_CHECKING:
    from pytest_memleak.hooks.running import RunningTest


# Mostly a fraction of one is enough; a loaded machine must not leave a failure without its reason.
_SECONDS = 5.0


def owners_of(test: RunningTest) -> Owners:
    def owners(reading: Reading, grown: int) -> tuple[str, ...]:
        from pytest_memleak.ledger.graph import device_type
        from pytest_memleak.ledger.owners import explain

        kind = reading.device.partition(":")[0]
        found = [tensor for tensor in tensors_among(garbage.newcomers()) if device_type(tensor) == kind]
        # Frozen objects are invisible to the search for referrers.
        garbage.thaw()
        try:
            roots = named_holders(test.item, test.wider)
            held = explain(found, grown, roots=roots, ignore=(found,), budget=_SECONDS)
            return (*held, *known_caches.state(held))
        except Exception as error:  # noqa: BLE001 – it walks through other people's objects; the verdict stands without
            return (f"who holds it could not be explained: {error!r}",)
        finally:
            found.clear()

    return owners
