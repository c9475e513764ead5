from splitjax.bench import mpo


def test_rows_compare_both_ways_and_say_where_they_cross():
    """With times that can be told: rebuilding is quicker from 4 tokens on."""
    factor = mpo.made((24, 16), 4)
    counts = []

    def timed(steps):
        for step in steps.values():
            counts.append(len(step()))
        quick = counts[-1] >= 4
        return {"sequential": [2.0], "rebuild": [1.0 if quick else 4.0], "dense": [0.5]}

    rows = mpo.measure(factor, (1, 4, 8), timed, name="small")
    assert counts == [1] * 3 + [4] * 3 + [8] * 3
    ratios = {row["name"]: (row["reference"], row["ratio"]) for row in rows}
    assert ratios["small, 1 tokens: rebuild"] == ("dense", 8.0)
    assert ratios["small, 1 tokens: sequential"] == ("dense", 4.0)
    way = factor.chosen(8)
    want = 1.0 if way == "rebuild" else 2.0
    assert ratios["small, 8 tokens: auto"] == ("rebuild", want)
    assert rows[-1]["value"] == 4.0 and rows[-1]["unit"] == "tokens"
