import pytest
import requests

from metagrad.cluster.on_ray.address import without_proxy


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
