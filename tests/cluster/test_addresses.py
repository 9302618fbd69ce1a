import pytest
import requests

from metagrad.cluster.on_ray.address import cluster_address, has_credentials, masked, masked_address, without_proxy


@pytest.mark.parametrize(
    ("given", "named"),
    [(None, None), ("", None), ("local", None), ("auto", "auto"), ("10.0.0.7:6379", "10.0.0.7:6379")],
)
def test_a_cluster_is_named_unless_a_run_has_a_ray_of_its_own(
    given: str | None, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert cluster_address() == named


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("RAY_ADDRESS = 'me:secret@h:6379': no", "RAY_ADDRESS = '***@h:6379': no"),
        ("http://me:secret@h:8265/x: refused", "http://***@h:8265/x: refused"),
        ("(http://me:s/e?c=r@h:1/)", "(http://***@h:1/)"),
        ("get https://h:1/?token=secret&a=b failed", "get https://h:1/?*** failed"),
        ("get http://h:1/x?secret failed", "get http://h:1/x?*** failed"),
        ("url: /api/version?token=secret (Caused by", "url: /api/version?*** (Caused by"),
        ("http://[::1]:1/#token=secret", "http://[::1]:1/?***"),
        ("h:1?token=secret", "h:1?***"),
        ("me:secret@[::1]:6379", "***@[::1]:6379"),
        ("who? nobody answers at http://h:1/", "who? nobody answers at http://h:1/"),
        ("see #12 of /tmp/a=b", "see #12 of /tmp/a=b"),
    ],
)
def test_no_message_shows_what_an_address_hides(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_addresses_with_credentials_are_known() -> None:
    assert has_credentials("me@h:1")
    assert has_credentials("http://h:1/?token=x")
    assert not has_credentials("http://[::1]:8265/")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:a secret's 'odd'?#/@h:1/x?token=y z", "http://***@h:1/x?***"),
        ("me:p@ss@h:6379", "***@h:6379"),
        ("http://h:8265", "http://h:8265"),
        ("h#t=secret", "h?***"),
    ],
)
def test_an_address_is_masked_whatever_its_secrets_are_made_of(address: str, shown: str) -> None:
    assert masked_address(address) == shown


@pytest.mark.parametrize("url", ["http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265"])
def test_this_computer_is_reached_without_a_proxy_and_others_as_before(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    for name, hosts in without_proxy({"no_proxy": "intranet"}).items():
        monkeypatch.setenv(name, hosts)
    assert requests.utils.get_environ_proxies(url) == {}
    assert requests.utils.get_environ_proxies("http://intranet/") == {}
    assert requests.utils.get_environ_proxies("http://head:8265")["http"] == "http://proxy:3128"


def test_what_is_excepted_already_is_not_repeated() -> None:
    assert without_proxy({"NO_PROXY": "localhost, a"})["NO_PROXY"] == "localhost,a,127.0.0.1,::1"
