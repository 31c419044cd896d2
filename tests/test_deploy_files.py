"""The files that operators copy from `deploy/`: what is in them is what their readers take."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from whisper_byoc import cli, service
from whisper_byoc.orchestrator.registration import DRAIN_SECONDS, WITHDRAW_SECONDS
from whisper_byoc.settings import PEER_NAMES, Interface, Settings, read_settings

REPOSITORY = Path(__file__).parent.parent
DEPLOY = REPOSITORY / "deploy"
PAGES = [REPOSITORY / name for name in ("README.md", "docs/livepeer.md", "docs/tutorial.md",
                                        "docs/image.md", "docs/live-runner.md")]  # fmt: skip
COMPOSE = ["compose.yaml", "go-livepeer/compose.yaml"]

# Of livepeer/node: what `livepeer orchestrator --help` lists, and the fields behind it, which are
# the keys of its TOML.
FLAGS = (
    "config network data-dir account eth-usd-feed price-max-age listen metrics-listen service-url"
    " runner-service-url proxy-url-template bootstrap-secret-file runner-config redeemer-db"
    " keystore-file keystore-password-file rpc-url-file chain-id redeemer-max-fee-per-gas"
    " controller-address wei-per-usd ticket-face-value ticket-win-prob runner-grants"
    " session-proxy-grants health-grants heartbeat-interval heartbeat-ttl print-config"
)
KEYS = (
    "Network Account ETHUSDFeed PriceMaxAge Listen MetricsListen ServiceURL RunnerServiceURL"
    " ProxyURLTemplate BootstrapSecretFile RunnerConfig RedeemerDB KeystoreFile"
    " KeystorePasswordFile RPCURLFile ChainID RedeemerMaxFeePerGas Controller WeiPerUSD"
    " TicketFaceValue TicketWinProb RunnerGrants SessionProxyGrants HealthGrants HeartbeatInterval"
    " HeartbeatTTL"
)
RUNNER_KEYS = (
    "ID RunnerURL App Mode Capacity Status HealthURL HealthCode Label Version Metadata Proxy GPU"
    " PriceInfo"
)
PRICE_KEYS = {"Price", "Currency", "Unit"}


def toml(name: str, *, whole: bool) -> dict[str, Any]:
    """whole: with the lines that are commented out."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    if whole:
        text = re.sub(r"^# (\[[A-Z]|[A-Z]\w+ = )", r"\1", text, flags=re.MULTILINE)
    return tomllib.loads(text)


@pytest.mark.parametrize("whole", [False, True])
def test_the_orchestrator_knows_every_key(whole: bool) -> None:
    """An unknown one ends its start."""
    values = toml("orchestrator.toml", whole=whole)
    assert values.keys() <= set(KEYS.split())
    assert values["BootstrapSecretFile"].startswith("/")
    assert ("RunnerConfig" in values) == whole


@pytest.mark.parametrize("whole", [False, True])
def test_the_orchestrator_knows_every_key_of_a_static_runner(whole: bool) -> None:
    runners = toml("runners.toml", whole=whole)["Runners"]
    assert {runner["Mode"] for runner in runners} == {"persistent", "single-shot"}
    assert len({runner["ID"] for runner in runners}) == len(runners)
    for runner in runners:
        assert runner.keys() <= set(RUNNER_KEYS.split())
        assert runner["HealthURL"] == runner["RunnerURL"] + "/ready"
        assert runner["App"] == Settings().app_id("tiny.en")
    assert not whole or runners[-1]["PriceInfo"].keys() <= PRICE_KEYS


def test_go_livepeers_static_runner_is_json() -> None:
    text = (DEPLOY / "go-livepeer" / "runners.json").read_text(encoding="utf-8")
    (runner,) = json.loads(text)["runners"]
    assert runner["app"] == Settings().app_id("tiny.en")
    assert runner["health_url"] == "/ready"


def services(name: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    text = (DEPLOY / name).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def environment(service: dict[str, Any]) -> dict[str, str]:
    """As compose gives it: a variable of its own is the one that this repository's readers set."""
    return {
        name: re.sub(r"\$\{\w+(:[^}]*)?\}", "0123456789", value)
        for name, value in service["environment"].items()
    }


@pytest.mark.parametrize("name", COMPOSE)
def test_what_compose_sets_are_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    values = environment(services(name)["whisper"])
    for variable, value in values.items():
        assert variable in PEER_NAMES or variable in settings_names()
        monkeypatch.setenv(variable, value)
    settings = read_settings()
    assert settings.orchestrator.urls
    assert settings.orchestrator.secret.get_secret_value()
    interface = Interface.LIVE_RUNNER if name == "compose.yaml" else Interface.BYOC
    assert settings.orchestrator.interfaces == (interface,)
    assert settings.orchestrator.verify_tls == (interface is Interface.LIVE_RUNNER)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_waits_for_the_last_words(name: str) -> None:
    """Docker kills what has not stopped by then."""
    longest = sum(
        (
            DRAIN_SECONDS,
            Settings().server.drain_seconds,
            service._ANSWERED_SECONDS,
            service._SETTLE_SECONDS,
            WITHDRAW_SECONDS,
            cli._CLOSE_SECONDS,
        )
    )
    assert float(services(name)["whisper"]["stop_grace_period"].rstrip("s")) > longest


def test_compose_grants_what_the_worker_says_of_itself() -> None:
    found = services("compose.yaml")
    command, *flags = found["orchestrator"]["command"]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert command == "orchestrator"
    assert given.keys() <= set(FLAGS.split())
    own = environment(found["whisper"])
    assert own["CAPABILITY_URL"] == f"http://{given['runner-grants']}"
    assert own["ORCH_URL"] == given["runner-service-url"]
    assert int(own["CAPABILITY_CAPACITY"]) > int(own["WHISPER_JOBS_MAX_JOBS"])
    assert "ports" not in found["whisper"]


def settings_names() -> set[str]:
    return {
        f"WHISPER_{group}_{field}".upper()
        for group, info in Settings.model_fields.items()
        for field in getattr(info.annotation, "model_fields", ())
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    names = re.findall(r"\bWHISPER_[A-Z]+_[A-Z_]+\b", page.read_text(encoding="utf-8"))
    assert set(names) <= settings_names()
