"""What the routes work with."""

from __future__ import annotations

import msgspec
from litestar.di import NamedDependency
from litestar.params import SkipValidation

from voicecost_catalog import CatalogPriceBook
from voicecost_ledger.stores import Store
from voicecost_sidecar.auth import Authenticator
from voicecost_sidecar.checkpoints import CheckpointReader
from voicecost_sidecar.config import Config
from voicecost_sidecar.hub import Hub
from voicecost_sidecar.metrics import Metrics
from voicecost_sidecar.poller import Poller


class Parts(msgspec.Struct, kw_only=True):
    """One sidecar's parts. `checkpoints` and `poller` are None without a LiveKit project."""

    config: Config
    store: Store
    prices: CatalogPriceBook
    hub: Hub
    authenticator: Authenticator
    metrics: Metrics
    checkpoints: CheckpointReader | None
    poller: Poller | None


# A route's parameter `parts`; what we made ourselves need not be validated on each request.
PartsDependency = NamedDependency[SkipValidation[Parts]]
