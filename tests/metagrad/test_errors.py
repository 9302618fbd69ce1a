import pytest

from metagrad.errors import ConfigurationError, require


def test_require_says_field_value_rule_and_remedy_in_one_line():
    with pytest.raises(ConfigurationError) as error:
        require(False, "learner.n", -1, "must be at least 0", "choose 0 for plain A2C")
    assert str(error.value) == "learner.n = -1: must be at least 0; choose 0 for plain A2C"


def test_require_shows_the_value_as_it_would_be_written():
    with pytest.raises(ConfigurationError, match="name = 'nstep': "):
        require(False, "name", "nstep", "rule", "remedy")


def test_require_passes_what_holds():
    require(True, "field", 1, "rule", "remedy")


def test_configuration_error_is_a_value_error():
    assert issubclass(ConfigurationError, ValueError)
