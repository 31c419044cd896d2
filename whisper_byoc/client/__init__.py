"""Clients of the service, directly or in a session of a Livepeer orchestrator. The scripts use
them, and so may anyone."""

from whisper_byoc.client.connection import ClientError, Tls
from whisper_byoc.client.live import LiveClient, ProcessorClient, TrickleClient
from whisper_byoc.client.network import Session, reserve

__all__ = [
    "ClientError",
    "LiveClient",
    "ProcessorClient",
    "Session",
    "Tls",
    "TrickleClient",
    "reserve",
]
