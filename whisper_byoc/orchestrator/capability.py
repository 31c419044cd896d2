"""BYOC's registration, of go-livepeer up to 0.9.4 (pure). docs/wire.md has its cases."""

import json

from whisper_byoc.orchestrator.entry import Answer, Entry, Load, Request, Step
from whisper_byoc.settings import Settings

_NO_BYOC = (
    "this orchestrator has no BYOC, as none has since go-livepeer 0.10:"
    " set WHISPER_ORCHESTRATOR_INTERFACES=live-runner"
)


def capability_body(settings: Settings, num_streams: int) -> dict[str, object]:
    """What `/capability/register` takes. It sets the orchestrator's count of free places, so that
    what runs is taken off."""
    capability = settings.capability
    capacity = capability.capacity or settings.jobs.max_jobs
    body: dict[str, object] = {
        "name": capability.name,
        "description": capability.description,
        "url": capability.url,
        "capacity": max(0, capacity - num_streams),
        "price_per_unit": capability.price_per_unit,
        "price_scaling": capability.price_scaling,
        "currency": capability.price_currency,
    }
    token = settings.orchestrator.token.get_secret_value()
    return body | ({"token": token} if token else {})


class CapabilityEntry(Entry):
    """The orchestrator forgets it only when it restarts or we answer 401."""

    def __init__(self, settings: Settings, url: str) -> None:
        super().__init__(settings, url, f"capability {settings.capability.name}")
        self._settings = settings

    def next_request(self, load: Load) -> Request:
        body = capability_body(self._settings, load.num_streams)
        return Request("/capability/register", self._secret, json.dumps(body))

    def next_withdrawal(self) -> Request:
        name = self._settings.capability.name
        return Request("/capability/unregister", self._secret, name, "text/plain")

    def receive_answer(self, answer: Answer) -> Step:
        if answer.ok:
            return self._accepted(self._interval)
        if answer.status == 400:
            return self._rejected(answer)
        return self.receive_failure(answer.problem, _NO_BYOC if answer.status == 404 else "")
