"""Whom we believe to be an orchestrator."""

import ssl
from functools import cache

from whisper_byoc.errors import ConfigurationError
from whisper_byoc.settings import OrchestratorSettings


@cache  # of one process; the file is read once
def tls_of(settings: OrchestratorSettings) -> ssl.SSLContext | bool:
    """What aiohttp takes as `ssl`: True checks certificates by the system's roots, False does not
    check them. Raises ConfigurationError when the file of certificates cannot be used."""
    if settings.ca_file is None or not settings.verify_tls:
        return settings.verify_tls
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"WHISPER_ORCHESTRATOR_CA_FILE is {str(settings.ca_file)!r}: {error}, expected a file"
            " of certificates in PEM"
        ) from error
    return context
