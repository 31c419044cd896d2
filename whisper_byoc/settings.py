"""Every setting of the service; the only reader of the environment.

`WHISPER_<GROUP>_<FIELD>` sets a field: `WHISPER_SERVER_PORT=9000`, `WHISPER_JOBS_MAX_JOBS=4`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from whisper_byoc.errors import ConfigurationError


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class EngineKind(StrEnum):
    BATCHED = "batched"
    REFERENCE = "reference"


class Mode(StrEnum):
    LOW_LATENCY = "low_latency"
    BALANCED = "balanced"
    FINALS_ONLY = "finals_only"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ServerSettings(Group):
    host: str = Field("0.0.0.0", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    log_level: LogLevel = Field(LogLevel.INFO, description="debug, info, warning or error")
    drain_seconds: float = Field(
        20.0, ge=0, le=600, description="s given to running jobs to flush after SIGTERM"
    )


class ModelSettings(Group):
    directory: Path = Field(
        Path("models"), description="folder with the baked weights and their manifest"
    )
    names: Annotated[tuple[str, ...], NoDecode] = Field(
        ("tiny.en",),
        min_length=1,
        description="models to load, with commas between; a job's language picks among them",
    )
    device: Device = Field(Device.AUTO, description="auto takes CUDA when it is there")
    engine: EngineKind = Field(
        EngineKind.BATCHED,
        description="batched is ours; reference is openai-whisper as it is, to compare with",
    )
    full_padding: bool = Field(
        False, description="let batched encode 30 s for every window, as openai-whisper does"
    )
    threads: int = Field(
        0, ge=0, le=256, description="CPU threads of one decode; 0 takes every core of the machine"
    )

    @field_validator("names", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(value.replace(",", " ").split())
        return value


class StreamingSettings(Group):
    mode: Mode = Field(
        Mode.BALANCED,
        description="low_latency: words become final sooner, and are wrong more often; balanced;"
        " finals_only: nothing before an utterance is over",
    )
    speech_threshold: float = Field(
        0.5, gt=0, lt=1, description="voice probability from which a frame is speech"
    )
    silence_threshold: float = Field(
        0.35, gt=0, lt=1, description="voice probability below which silence starts to count"
    )
    endpoint_silence: float = Field(
        1.0, ge=0.1, le=5, description="s of silence that end an utterance"
    )
    pre_roll: float = Field(1.0, ge=0, le=2, description="s of audio kept before speech begins")
    min_speech_frames: int = Field(
        3, ge=1, le=100, description="32 ms frames of speech below which an utterance is noise"
    )
    partial_interval: float = Field(
        0.5, ge=0.1, le=10, description="s of new audio between two partials; more under load"
    )
    max_window: float = Field(
        14.0, ge=5, le=28, description="s of a live utterance decoded again for every partial"
    )
    max_utterance: float = Field(
        24.0, ge=5, le=28, description="s of speech without a pause before it is cut"
    )


class JobSettings(Group):
    max_jobs: int = Field(
        64, ge=1, le=100_000, description="jobs running at once; one more answers 503"
    )
    idle_seconds: float = Field(
        60.0, gt=0, le=86400, description="s without audio or keepalive after which a job is ended"
    )
    retention_seconds: float = Field(
        600.0, ge=0, le=86400, description="s that an ended job's transcript can be read again"
    )
    max_ended_jobs: int = Field(
        1000, ge=0, le=1_000_000, description="ended jobs kept; the oldest is forgotten first"
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
    keepalive_seconds: float = Field(
        15.0, gt=0, le=600, description="s between keepalive comments on a silent SSE output"
    )


class Settings(BaseSettings):
    """All groups; construct it to read the environment, or pass groups to override them."""

    model_config = SettingsConfigDict(
        env_prefix="WHISPER_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        frozen=True,
        extra="forbid",
    )

    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    streaming: StreamingSettings = StreamingSettings()
    jobs: JobSettings = JobSettings()


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
            f"WHISPER_{'_'.join(map(str, item['loc'])).upper()} is {item['input']!r}:"
            f" {item['msg'][0].lower()}{item['msg'][1:]}"
            for item in error.errors()
        )
        raise ConfigurationError("; ".join(problems)) from error


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of the README's table."""

    variable: str
    default: str
    description: str


def setting_rows() -> Iterator[SettingRow]:
    """Every field as its environment variable, in order of declaration."""
    for group_name, group in Settings.model_fields.items():
        default = group.default
        for name, field in type(default).model_fields.items():
            value = getattr(default, name)
            shown = ",".join(value) if isinstance(value, tuple) else str(value)
            variable = f"WHISPER_{group_name}_{name}".upper()
            yield SettingRow(variable, shown, field.description or "")
