import pytest

from metagrad.cluster.on_ray.address import has_credentials, masked, masked_address


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
