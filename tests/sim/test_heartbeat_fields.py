"""What a heartbeat may say (wire reference, 1.2)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sim.heartbeat_fields import Fields, Invalid, read_fields, read_object

GOOD: dict[str, Any] = {"runner_url": "http://whisper:8000", "app": "a/b"}
JSON = "invalid heartbeat JSON"
CAPACITY = "app and capacity between 1 and 10000 are required"
URL = "runner_url must be an absolute HTTP or HTTPS URL"
MODE = "mode must be persistent or single-shot"
POSITIVE = "runner price must be positive in on-chain mode"


def read(node: bool = True, on_chain: bool = False, **changes: Any) -> Fields:
    return read_fields(json.dumps(GOOD | changes).encode(), node=node, on_chain=on_chain)


def test_what_is_left_out_has_its_default() -> None:
    fields = read()
    assert fields == Fields("http://whisper:8000", "a/b")
    assert (fields.capacity, fields.mode, fields.status, fields.unit) == (
        *(1, "persistent", "ready", "hour"),
    )
    assert not fields.single_shot


def test_what_is_said_is_taken() -> None:
    gpu = {"id": "0", "name": "H100", "vram_mb": 80_000}
    price = {"price": "1e-05", "currency": " USD ", "unit": "fixed"}
    fields = read(
        runner_id="r_1-A", capacity=64, mode="single-shot", status="draining", proxy=True,
        version="1", metadata="m", label="l", gpu=gpu, price_info=price, session_ids=["x"], other=1,
    )  # fmt: skip
    assert fields.gpu == gpu
    assert (fields.price, fields.unit, fields.proxy, fields.single_shot) == (
        *(1e-05, "fixed", True, True),
    )
    assert (fields.runner_id, fields.capacity, fields.status) == ("r_1-A", 64, "draining")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"runner_id": "a b"}, "runner_id must contain only ASCII letters, "),
        ({"runner_id": "a" * 129}, "runner_id must contain only ASCII letters, "),
        ({"runner_url": ""}, URL),
        ({"runner_url": "whisper:8000"}, URL),
        ({"runner_url": "/base"}, URL),
        ({"runner_url": "http://"}, URL),
        ({"app": ""}, CAPACITY),
        ({"capacity": -1}, CAPACITY),
        ({"capacity": 10_001}, CAPACITY),
        ({"capacity": 3.0}, JSON),
        ({"capacity": "3"}, JSON),
        ({"capacity": True}, JSON),
        ({"mode": "single_shot"}, MODE),
        ({"mode": "batch"}, MODE),
        ({"status": 1}, JSON),
        ({"proxy": "yes"}, JSON),
        ({"gpu": -1}, JSON),
        ({"gpu": {"vram_mb": -1}}, JSON),
        ({"gpu": "H100"}, JSON),
        ({"session_ids": "x"}, JSON),
        ({"session_ids": [1]}, JSON),
        ({"price_info": []}, JSON),
        ({"price_info": {"price": ""}}, JSON),
        ({"price_info": {"price": True}}, JSON),
        ({"price_info": {"price": -1}}, "runner price must be nonnegative"),
        ({"price_info": {"price": 1, "currency": "eur"}}, "runner price currency must be USD"),
        ({"price_info": {"unit": "minute"}}, "price_info.unit must be hour or fixed"),
        ({"price_info": {"unit": "720p"}}, "720p pricing is unsupported"),
    ],
)
def test_node_refuses_it_with_this_text(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid, match=text.replace(".", r"\.")) as refused:
        read(**changes)
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize("price", [None, {}, {"price": 0}, {"price": -1}, {"unit": "hour"}])
def test_a_price_must_be_positive_on_chain(price: Any) -> None:
    with pytest.raises(Invalid, match=POSITIVE):
        read(on_chain=True, price_info=price)
    assert read(on_chain=True, price_info={"price": 0.1, "unit": "fixed"}).unit == "fixed"


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": 2},
        {"capacity": 0},
        {"capacity": None},
        {"price_info": {"price": 0, "currency": "eur"}},
        {"price_info": {"price": "0.5", "currency": "Usd"}},
        {"session_ids": None},
        {"runner_url": "https://h/base?key=v"},
    ],
)
def test_node_takes_it(changes: dict[str, Any]) -> None:
    read(**changes)


def test_go_livepeer_is_easier_in_some_points() -> None:
    fields = read(
        node=False, mode="single_shot", runner_id=" any id ", capacity=20_000, gpu=-1,
        runner_url="http://h/b?key=v", price_info={"price": -1, "unit": "minute"},
    )  # fmt: skip
    assert (fields.mode, fields.runner_id) == ("single-shot", "any id")
    assert (fields.capacity, fields.runner_url) == (20_000, "http://h/b")
    with pytest.raises(Invalid, match="invalid runner_url"):
        read(node=False, runner_url="h")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b'"x"', b"{} {}", b"{}x", b'{"capacity": NaN}', b"[" * 100_000],
    ids=lambda body: body[:9].decode() or "nothing",
)
def test_a_body_is_one_json_object(body: bytes) -> None:
    with pytest.raises(Invalid, match=JSON):
        read_fields(body)


def test_a_body_has_at_most_a_mebibyte() -> None:
    body = json.dumps(GOOD).encode()
    assert read_fields(body.ljust(1 << 20)).app == "a/b"
    with pytest.raises(Invalid, match=JSON):
        read_fields(body.ljust((1 << 20) + 1))


def test_names_have_no_case_and_the_last_one_wins() -> None:
    read_one = read_object(b'{"App": "a", "APP": "b", "status": "x", "Status": null, "n\xff": 1}')
    assert read_one["app"] == "b"
    assert read_object(b"null") == {}


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_whatever_is_read_is_refused_or_checked(given_fields: dict[str, Any]) -> None:
    try:
        fields = read_fields(json.dumps(GOOD | given_fields).encode())
    except Invalid:
        return
    assert 1 <= fields.capacity <= 10_000
