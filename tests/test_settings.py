"""Settings from the environment."""

import pytest

from whisper_byoc.errors import ConfigurationError
from whisper_byoc.settings import read_settings, setting_rows


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
    rows = list(setting_rows())
    assert len(rows) > 20
    assert all(row.description for row in rows)
