"""Every setting of the service; the only reader of the environment.

`WHISPER_<GROUP>_<FIELD>` sets a field: `WHISPER_SERVER_PORT=9000`, `WHISPER_JOBS_MAX_JOBS=4`.
The names that other Livepeer workers read (`ORCH_URL`, `CAPABILITY_NAME`, ...) set some, too; where
both are there ours counts.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from whisper_byoc.decode import Effort
from whisper_byoc.errors import ConfigurationError


def num_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Mode(StrEnum):
    LOW_LATENCY = "low_latency"
    BALANCED = "balanced"
    FINALS_ONLY = "finals_only"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Interface(StrEnum):
    """Which of an orchestrator's interfaces a worker announces itself to."""

    LIVE_RUNNER = "live-runner"
    BYOC = "byoc"
    """Of go-livepeer up to 0.9.4."""


class RunnerMode(StrEnum):
    """How clients of the network come to a Live Runner."""

    PERSISTENT = "persistent"
    """They reserve a session, and stop it."""
    SINGLE_SHOT = "single-shot"
    """Each request is a session of its own."""


class PriceUnit(StrEnum):
    """What a Live Runner's price is paid for."""

    HOUR = "hour"
    FIXED = "fixed"
    """A session, however long."""


def _words(value: object) -> object:
    """The words of a text, with commas or spaces between them; what is no text as it is."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _stripped(value: object) -> object:
    """A secret that was read from a file often ends with the file's line end."""
    return value.strip() if isinstance(value, str) else value


def _bare_url(url: str) -> str:
    """Without a slash at its end: paths are appended to it as text. Raises ValueError, also for a
    URL with a user and password in it, since URLs are logged."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("should begin with http:// or https:// and a host, without a user")
    return url.rstrip("/")


def _bare_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Of all at once, so that an error names the setting and not a place in it."""
    return tuple(map(_bare_url, urls))


def _runner_id(text: str) -> str:
    """Raises ValueError for what orchestrators refuse."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,128}", text):
        raise ValueError("should be at most 128 ASCII letters, digits, _ and -")
    return text


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """As browsers send them. Raises ValueError for what they never send."""
    for value in values:
        parts = urlsplit(value)
        bare = parts.scheme and parts.netloc and parts.path in ("", "/")
        if value not in ("*", "null") and not (bare and "@" not in value and not parts.query):
            raise ValueError("should be *, or origins like https://example.com, without a path")
    return tuple(value.rstrip("/").lower() for value in values)


# NoDecode: pydantic-settings would read the variable of a tuple as JSON.
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Secret = Annotated[SecretStr, BeforeValidator(_stripped)]
RunnerId = Annotated[str, AfterValidator(_runner_id)]


class ServerSettings(Group):
    host: str = Field("0.0.0.0", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    log_level: LogLevel = Field(LogLevel.INFO, description="debug, info, warning or error")
    processor: str = Field(
        "", description="module:Class of a processor to host in place of Whisper"
    )
    cors_origins: Annotated[Words, AfterValidator(_origins)] = Field(
        (),
        description="origins whose pages may use the doors of clients, with commas between; *"
        " means all, empty none",
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=600, description="s given to running jobs to flush after SIGTERM"
    )


class ModelSettings(Group):
    directory: Path = Field(
        Path("models"), description="folder with the baked weights and their manifest"
    )
    names: Words = Field(
        ("tiny.en",),
        min_length=1,
        description="models to load, with commas between; a job's language picks among them",
    )
    device: Device = Field(Device.AUTO, description="auto takes CUDA when it is there")
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of one decode; 0 takes every core that this process may use",
    )


# What a job may choose as well (jobs/options.py).
EndpointSilence = Annotated[float, Field(ge=0.1, le=5, allow_inf_nan=False)]
PartialInterval = Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)]
MaxUtterance = Annotated[float, Field(ge=5, le=28, allow_inf_nan=False)]


class StreamingSettings(Group):
    mode: Mode = Field(
        Mode.BALANCED,
        description="low_latency: words become final sooner, and are wrong more often; balanced;"
        " finals_only: nothing before an utterance is over",
    )
    endpoint_silence: EndpointSilence = Field(1.0, description="s of silence that end an utterance")
    partial_interval: PartialInterval = Field(
        0.5, description="s of new audio between two partials; more under load"
    )
    max_window: float = Field(
        14.0, ge=5, le=28, description="s of a live utterance decoded again for every partial"
    )
    max_utterance: MaxUtterance = Field(
        24.0, description="s of speech without a pause before it is cut"
    )


class RecordingSettings(Group):
    effort: Effort = Field(
        Effort.THOROUGH,
        description="what is computed for a recording that names no effort: quick, or thorough",
    )


class JobSettings(Group):
    max_jobs: int = Field(
        64, ge=1, le=100_000, description="jobs running at once; one more answers 503"
    )
    idle_seconds: float = Field(
        60.0, gt=0, le=86400, description="s without audio or keepalive after which a job is ended"
    )
    answer_seconds: float = Field(
        45.0,
        gt=0,
        le=55,
        description="s from a request's last byte to the head of its answer, whatever it waits for;"
        " orchestrators wait 60",
    )
    retention_seconds: float = Field(
        600.0, ge=0, le=86400, description="s that an ended job's transcript can be read again"
    )
    max_ended_jobs: int = Field(
        1000, ge=0, le=1_000_000, description="ended jobs kept; the oldest is forgotten first"
    )
    max_ended_bytes: int = Field(
        256 * 1024**2, ge=0, description="bytes of processors' output that ended jobs keep in all"
    )
    output_grace_seconds: float = Field(
        10.0, ge=0, le=600, description="s that GET output waits for a job that does not exist yet"
    )
    max_body_bytes: int = Field(
        4 * 1024**3, ge=1, description="bytes of one PUT body; more answers 413"
    )
    max_events: int = Field(
        50_000, ge=10, description="events kept per job for readers; the oldest give way"
    )
    max_output_bytes: int = Field(
        64 * 1024**2,
        ge=1024,
        description="bytes of a processor's output kept per job; the oldest give way",
    )
    keepalive_seconds: float = Field(
        15.0,
        gt=0,
        le=600,
        description="s between keepalives on a silent output: SSE comments, empty NDJSON lines",
    )


class OrchestratorSettings(Group):
    urls: Annotated[Words, AfterValidator(_bare_urls)] = Field(
        (), description="orchestrators to register with, with commas between; ORCH_URL"
    )
    secret: Secret = Field(SecretStr(""), description="what orchestrators know us by; ORCH_SECRET")
    interfaces: Annotated[tuple[Interface, ...], NoDecode, BeforeValidator(_words)] = Field(
        (Interface.LIVE_RUNNER,),
        min_length=1,
        description="live-runner; byoc for go-livepeer up to 0.9.4; or both with a comma between",
    )
    interval: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="s between two BYOC registrations, and between two attempts that were rejected",
    )
    verify_tls: bool = Field(
        True, description="check orchestrators' certificates; go-livepeer signs its own"
    )
    ca_file: Path | None = Field(
        None, description="certificates (PEM) to trust beside the system's; empty for none"
    )
    allowed_hosts: Words = Field(
        (),
        description="hosts of URLs that callers name, for a BYOC start or as a session's callback;"
        " default those of the orchestrators",
    )
    token: Secret = Field(
        SecretStr(""),
        description="what the worker and batch doors want as Bearer token; AUTH_TOKEN",
    )

    @property
    def hosts(self) -> frozenset[str]:
        """That the callbacks of a session may lead to, in lower case."""
        named = self.allowed_hosts or tuple(urlsplit(url).hostname or "" for url in self.urls)
        return frozenset(host.lower() for host in named)

    @property
    def start_hosts(self) -> frozenset[str] | None:
        """That the URLs of a start may lead to, in lower case; None means any. An open container
        must not fetch what strangers name, so any takes a token."""
        if self.allowed_hosts or (self.urls and Interface.BYOC in self.interfaces):
            return self.hosts
        return None if self.token.get_secret_value() else frozenset()


class CapabilitySettings(Group):
    name: str = Field(
        "whisper-byoc", min_length=1, description="name it is registered by; CAPABILITY_NAME"
    )
    description: str = Field(
        "live speech to text", description="for people; CAPABILITY_DESCRIPTION"
    )
    url: Annotated[str, AfterValidator(_bare_url)] = Field(
        "http://localhost:8000",
        description="where orchestrators reach this service; CAPABILITY_URL",
    )
    capacity: int = Field(
        0,
        ge=0,
        description="streams or sessions offered at once; 0 means WHISPER_JOBS_MAX_JOBS;"
        " CAPABILITY_CAPACITY",
    )
    price_per_unit: int = Field(
        0, ge=0, description="price of a second, before scaling; CAPABILITY_PRICE_PER_UNIT"
    )
    price_scaling: int = Field(
        1, ge=1, description="what the price is divided by; CAPABILITY_PRICE_SCALING"
    )
    price_currency: str = Field(
        "wei",
        description="wei, eth, or what the orchestrator has a feed for; CAPABILITY_PRICE_CURRENCY",
    )
    pipeline: str = Field(
        "live-transcription",
        min_length=1,
        description="name in status documents, and first half of the app id; PIPELINE",
    )


class RunnerSettings(Group):
    """What the Live Runner interface tells, and how its sessions are kept."""

    app: str = Field(
        "",
        description="app id that clients ask for; empty means the pipeline, a slash and the model",
    )
    modes: Annotated[tuple[RunnerMode, ...], NoDecode, BeforeValidator(_words)] = Field(
        (RunnerMode.PERSISTENT,),
        min_length=1,
        description="persistent, single-shot, or both with a comma between: an entry each",
    )
    id: RunnerId = Field(
        "",
        description="id to ask for, so that URLs stay when the service restarts; empty lets the"
        " orchestrator choose",
    )
    single_shot_id: RunnerId = Field(
        "", description="the single-shot entry's id where there are two; empty as above"
    )
    price: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="price in USD; on-chain orchestrators refuse 0, others do not look at it",
    )
    price_unit: PriceUnit = Field(PriceUnit.HOUR, description="hour, or fixed for a whole session")
    single_shot_price: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="the single-shot entry's price; empty as the other",
    )
    single_shot_price_unit: PriceUnit | None = Field(
        None, description="the single-shot entry's unit; empty as the other"
    )
    proxy: bool = Field(False, description="ask the orchestrator for a short URL of its own")
    session_idle_seconds: float = Field(
        600.0,
        gt=0,
        le=86400,
        description="s without a request after which a session is stopped: orchestrators never do",
    )


class WorkerSettings(Group):
    heartbeat_seconds: float = Field(
        5.0, gt=0, le=25, description="s between heartbeats on a stream's events channel"
    )
    data_keepalive_seconds: float = Field(
        25.0, gt=0, le=240, description="s of silence before a keepalive on the data channel"
    )
    stop_seconds: float = Field(
        8.5, gt=0, le=60, description="s that a stop may take; orchestrators wait 10"
    )
    retry_seconds: float = Field(
        12.0, gt=0, le=300, description="s of failures in a row that end a channel"
    )
    silence_seconds: float = Field(
        60.0,
        gt=0,
        le=86400,
        description="s without input, control message or update that end a stream; gateways send a"
        " keepalive every 10",
    )
    max_segment_bytes: int = Field(
        32 * 1024**2, ge=1024, description="bytes of one trickle segment; more answers 413"
    )
    max_waiting_bytes: int = Field(
        32 * 1024**2,
        ge=1024,
        description="bytes of a stream's input that may wait for the engine; the oldest segments"
        " give way",
    )
    max_upload_bytes: int = Field(
        50 * 1024**2, ge=1024, description="bytes of one batch request; more answers 413"
    )


PEER_NAMES: Mapping[str, tuple[str, str]] = {
    "ORCH_URL": ("orchestrator", "urls"),
    "ORCH_SECRET": ("orchestrator", "secret"),
    "AUTH_TOKEN": ("orchestrator", "token"),
    "CAPABILITY_NAME": ("capability", "name"),
    "CAPABILITY_DESCRIPTION": ("capability", "description"),
    "CAPABILITY_URL": ("capability", "url"),
    "CAPABILITY_CAPACITY": ("capability", "capacity"),
    "CAPABILITY_PRICE_PER_UNIT": ("capability", "price_per_unit"),
    "CAPABILITY_PRICE_SCALING": ("capability", "price_scaling"),
    "CAPABILITY_PRICE_CURRENCY": ("capability", "price_currency"),
    "PIPELINE": ("capability", "pipeline"),
    "MODEL_ID": ("model", "names"),
    "LIVEPEER_ORCH_URL": ("orchestrator", "urls"),
    "LIVEPEER_ORCH_SECRET": ("orchestrator", "secret"),
    "LIVEPEER_CAPABILITY_NAME": ("capability", "name"),
    "LIVEPEER_CAPABILITY_URL": ("capability", "url"),
    "LIVEPEER_CAPACITY": ("capability", "capacity"),
    "LIVEPEER_PRICE_PER_UNIT": ("capability", "price_per_unit"),
}
"""What PyTrickle, comfystream, project-transcript, ai-runner and livepeer-gateway's runners read
(docs/wire.md). An earlier name counts before a later one."""
_SECRET_NAMES = (
    "ORCH_SECRET", "LIVEPEER_ORCH_SECRET", "AUTH_TOKEN",
    "WHISPER_ORCHESTRATOR", "WHISPER_ORCHESTRATOR_SECRET", "WHISPER_ORCHESTRATOR_TOKEN",
)  # fmt: skip


def own_model_name(name: str) -> str:
    """Whisper's name of weights that may be named as Hugging Face does."""
    return name.removeprefix("openai/").removeprefix("whisper-")


def peer_values(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Groups and fields that the peers' names set; an empty variable sets nothing."""
    values: dict[str, dict[str, str]] = {}
    for name, (group, field) in PEER_NAMES.items():
        value = environment.get(name, "").strip()
        if value and field not in values.get(group, {}):
            if name == "MODEL_ID":
                value = own_model_name(value)
            values.setdefault(group, {})[field] = value
    return values


def drop_secrets(environment: MutableMapping[str, str]) -> None:
    """So that ffmpeg, or anything else we start, does not inherit them."""
    for name in list(environment):
        if name.upper() in _SECRET_NAMES:
            del environment[name]


class Settings(BaseSettings):
    """All groups; construct it to read the environment, or pass groups to override them."""

    model_config = SettingsConfigDict(
        env_prefix="WHISPER_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
    )

    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    streaming: StreamingSettings = StreamingSettings()
    recordings: RecordingSettings = RecordingSettings()
    jobs: JobSettings = JobSettings()
    orchestrator: OrchestratorSettings = OrchestratorSettings()
    capability: CapabilitySettings = CapabilitySettings()
    runner: RunnerSettings = RunnerSettings()
    worker: WorkerSettings = WorkerSettings()

    def app_id(self, model_name: str) -> str:
        """What clients of the network ask a Live Runner for."""
        return self.runner.app or f"{self.capability.pipeline}/{model_name}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        peers = InitSettingsSource(settings_cls, dict(peer_values(os.environ)))
        return init_settings, env_settings, peers


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment. Raises ConfigurationError naming the variable."""
    try:
        return Settings(**overrides)
    except SettingsError as error:
        raise ConfigurationError(
            f"the environment cannot be read: {error}, expected WHISPER_<GROUP>_<FIELD>"
        ) from error
    except ValidationError as error:
        problems = (
            f"WHISPER_{'_'.join(map(str, item['loc'])).upper()} is {_shown(item)}:"
            f" {item['msg'][0].lower()}{item['msg'][1:]}"
            for item in error.errors()
        )
        raise ConfigurationError("; ".join(problems)) from error


def _shown(problem: Mapping[str, Any]) -> str:
    """What was found, unless it may be a secret, or hold one."""
    if problem["loc"] and problem["loc"][0] == "orchestrator":
        return "set and not shown"
    return repr(problem["input"])
