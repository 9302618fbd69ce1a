import pytest

from metagrad.cluster.on_ray.address import cluster_address


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
