"""Settings from the environment."""

import pytest

from whisper_byoc.errors import ConfigurationError
from whisper_byoc.settings import Settings, drop_secrets, read_settings


@pytest.mark.parametrize("value", ["tiny.en,base", "tiny.en base", " tiny.en , base,"])
def test_models_are_listed_with_commas_or_spaces(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WHISPER_MODEL_NAMES", value)
    assert read_settings().model.names == ("tiny.en", "base")


def test_a_field_is_set_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_JOBS_MAX_JOBS", "4")
    assert read_settings().jobs.max_jobs == 4


def test_every_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_JOBS_MAX_JOBS", "none")
    monkeypatch.setenv("WHISPER_SERVER_PORT", "-1")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert "WHISPER_JOBS_MAX_JOBS is 'none'" in str(caught.value)
    assert "WHISPER_SERVER_PORT is '-1'" in str(caught.value)


def test_every_setting_has_a_description() -> None:
    fields = [
        field
        for group in Settings.model_fields.values()
        for field in type(group.default).model_fields.values()
    ]
    assert len(fields) > 20
    assert all(field.description for field in fields)


def test_the_names_of_other_workers_count_where_ours_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORCH_URL", "https://a:8935/, http://b")
    monkeypatch.setenv("LIVEPEER_ORCH_URL", "http://c")
    monkeypatch.setenv("ORCH_SECRET", " hidden\n")
    monkeypatch.setenv("CAPABILITY_NAME", "")
    monkeypatch.setenv("LIVEPEER_CAPABILITY_NAME", "whisper")
    monkeypatch.setenv("CAPABILITY_CAPACITY", "3")
    monkeypatch.setenv("WHISPER_CAPABILITY_CAPACITY", "4")
    monkeypatch.setenv("MODEL_ID", "openai/whisper-tiny.en")
    settings = read_settings()
    assert settings.orchestrator.urls == ("https://a:8935", "http://b")
    assert settings.orchestrator.hosts == {"a", "b"}
    assert settings.orchestrator.secret.get_secret_value() == "hidden"
    assert (settings.capability.name, settings.capability.capacity) == ("whisper", 4)
    assert settings.model.names == ("tiny.en",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WHISPER_ORCHESTRATOR_ORCH_SECRET", "hunter2"),
        ("WHISPER_ORCHESTRATOR_URLS", "https://user:hunter2@host"),
        ("ORCH_URL", "hunter2"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert "WHISPER_ORCHESTRATOR_" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_secrets_do_not_stay_in_the_environment() -> None:
    environment = {
        "ORCH_SECRET": "a", "auth_token": "b", "WHISPER_ORCHESTRATOR": "c", "ORCH_URL": "d",
        "Whisper_Orchestrator_Token": "e",
    }  # fmt: skip
    drop_secrets(environment)
    assert environment == {"ORCH_URL": "d"}


@pytest.mark.parametrize(
    "name",
    ["MODEL_ENGINE", "MODEL_FULL_PADDING", "STREAMING_PRE_ROLL", "STREAMING_SPEECH_THRESHOLD"],
)
def test_what_experiments_vary_is_no_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"WHISPER_{name}", "1")
    with pytest.raises(ConfigurationError, match=f"WHISPER_{name}"):
        read_settings()
