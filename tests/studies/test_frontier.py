import pytest

from splitjax.studies import frontier
from splitjax.train.finetune import Finetune

MINE = Finetune()


def test_a_grid_is_the_product_of_its_fields():
    made = frontier.grid("layer=1,2 rank=8,16,32", MINE)
    assert made[0] == {"layer": 1, "rank": 8} and made[-1] == {"layer": 2, "rank": 32}
    assert len(made) == 6


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("warmup=0.5", {"warmup": 0.5}),
        ("ragged=False", {"ragged": False}),
        ("grid=token", {"grid": "token"}),
        ("after=layer_0+head", {"after": ("layer_0", "head")}),
        ("seeds=0+1", {"seeds": (0, 1)}),
        ("after=", {"after": ()}),
    ],
)
def test_a_value_is_read_as_its_field(text, point):
    [made] = frontier.grid(text, MINE)
    assert made == point
    [[name, value]] = made.items()
    assert type(value) is type(getattr(MINE, name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak=8", "grid field 'rnak': did you mean 'rank'"),
        ("rank=eight", "rank='eight' is no int"),
        ("rank", "rank='' is no int"),
        ("ragged=yes", "ragged='yes' must be True or False"),
        ("seeds=0+a", "seeds='0\\+a' is no tuple of int"),
    ],
)
def test_a_bad_grid_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        frontier.grid(text, MINE)


def test_points_come_once_and_in_order():
    made = frontier.points(["rank=8,4,8", "rank=4,2"], MINE)
    assert [point["rank"] for point in made] == [8, 4, 2]


def test_a_sweep_is_not_a_search():
    ranks = ",".join(map(str, range(1, 13)))
    assert len(frontier.points([f"rank={ranks} layer=0,1"], MINE)) == 24
    with pytest.raises(ValueError, match="25 points: at most 24"):
        frontier.points([f"rank={ranks} layer=0,1", "rank=99"], MINE)


def test_a_name_is_a_folder():
    name = frontier.name_of({"after": ("layer_0",), "task": "../x y", "rank": 8})
    assert "/" not in name and " " not in name and name.endswith(",rank=8")
    points = frontier.points(["rank=8,4 layer=1,2"], MINE)
    assert len({frontier.name_of(point) for point in points}) == 4


def summary(seed, metric, ratio):
    return {
        "metric": metric,
        "metric_name": "dev spearman",
        "before": {"dev": 0.7, "test": 0.6},
        "ratio": ratio,
        "bytes_up": 10,
        "bytes_down": 5,
        "edge_share": 0.5,
        "seed": seed,
        "seconds": 1.5,
    }


@pytest.fixture
def rows():
    one = frontier.row("unsplit", [summary(0, 0.8, None), summary(1, 0.9, None)])
    return [one, frontier.row("rank=8", [summary(0, 0.75, 120.0)])]


def test_rows_are_means_over_seeds(rows):
    assert rows[0]["value"] == 0.85 and rows[0]["deviation"] == 0.07071
    assert rows[0]["seeds"] == [0, 1] and rows[0]["seconds"] == 3.0
    assert rows[1]["deviation"] == 0 and rows[1]["before"] == 0.7
    lines = frontier.table(rows).splitlines()
    assert len(lines) == 4 and "dev spearman" in lines[0]
    assert "0.8500 ± 0.0707" in lines[2] and "+0.00" in lines[2]
    assert "0.7500" in lines[3] and "-10.00" in lines[3] and "120.0x" in lines[3]


def test_a_score_that_falls_is_better_when_it_is_lower():
    made = [
        frontier.row(name, [{**summary(0, value, ratio), "lower_is_better": True}])
        for name, value, ratio in (
            ("unsplit", 12.0, None),
            ("narrow", 14.5, 90.0),
            ("wide", 12.5, 30.0),
            ("worse", 13.0, 20.0),
        )
    ]
    assert [r["name"] for r in frontier.frontier(made[1:])] == ["wide", "narrow"]
    lines = frontier.table(made).splitlines()
    assert "+2.5000" in lines[3] and "+0.5000" in lines[4]


def test_what_leaks_has_columns_and_a_picture(rows, tmp_path):
    frontier.plot_leaks(rows, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert "dcor" not in frontier.table(rows)
    attacked = [
        {**summary(seed, 0.75, 120.0), "attacks": {"dcor": {"dcor_up": leak}}}
        for seed, leak in ((0, 0.5), (1, 0.25))
    ]
    rows.append(frontier.row("rank=4", attacked))
    assert rows[2]["leaks"] == {"dcor_up": 0.375}
    lines = frontier.table(rows).splitlines()
    assert "dcor up" in lines[0]
    assert lines[3].split("|")[-2].strip() == "-"
    assert lines[4].split("|")[-2].strip() == "0.3750"
    frontier.plot_leaks(rows, tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size > 1000


def test_the_picture_shows_the_points(rows, tmp_path):
    from matplotlib import image

    frontier.plot(rows, tmp_path / "some.png", title="mine")
    frontier.plot(rows[:1], tmp_path / "none.png", title="mine")
    some, none = (image.imread(tmp_path / f"{n}.png") for n in ("some", "none"))
    assert some.shape == none.shape and (some != none).mean() > 1e-3
