from metagrad.experiments.debiasing import snake_published as published


def test_every_agent_has_a_number_at_every_checkpoint() -> None:
    assert list(published.RETURNS) == ["a2c", "mg", "mg-outer", "bmg", "bmg-outer"]
    assert list(published.DISCOUNTS) == list(published.RETURNS)[1:]
    for table in (published.RETURNS, published.DISCOUNTS):
        for row in table.values():
            assert tuple(row) == published.CHECKPOINTS
            assert row[0].std is None, "nobody has learnt anything yet"
            assert all(number.std is not None and number.std > 0 for update, number in row.items() if update)


def test_some_numbers_stand_where_they_belong() -> None:
    assert published.RETURNS["mg-outer"][2_920] == (7.91, 1.3)
    assert published.RETURNS["a2c"][29_200] == (17.4, 0.3)
    assert published.DISCOUNTS["bmg"][1_460] == (0.802, 0.07)
    assert all(row[0].mean == 0.8 for row in published.DISCOUNTS.values())
