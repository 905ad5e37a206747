"""The table and the picture of clinical skill against instruction following."""

import matplotlib.image

from clinmerge_jax.evaluation.trade_off import SIDES, TradeOff
from clinmerge_jax.report.trade_off import trade_off_png, trade_off_text
from clinmerge_jax.statistics import Interval


def _found(t=0.5, sweep=("0.1", "0.9")):
    def near(value):
        return Interval(value, value - 4.0, value + 5.0)

    systems = {"base": 10.0, "clinical": 60.0, "instruct": 30.0, "merged": 50.0}
    rows = {name: [near(value + index) for index in range(len(SIDES))] for name, value in systems.items()}
    floors = [(20.0 + index, f"answer {index}") for index in range(len(SIDES))]
    return TradeOff(rows, floors, {one: (near(40.0), near(45.0)) for one in sweep}, t)


def test_the_table_has_every_score_with_its_interval_and_the_floors():
    text = trade_off_text(_found())
    for value in (10, 60, 30, 50):
        for index in range(len(SIDES)):
            assert f"{value + index} [{value + index - 4}, {value + index + 5}]" in text
    assert "21 (answer 1)" in text and "95 %" in text and "100, 100, 100, 100" in text
    assert all(side.name in text for side in SIDES)


def test_only_a_merge_above_the_line_between_the_parents_is_said_to_join_their_skills():
    def at(clinical, followed):
        return [Interval(value, value - 4.0, value + 4.0) for value in (clinical, 0.0, followed, 0.0)]

    def text(merged):
        sides = {"clinical": at(80.0, 0.0), "instruct": at(0.0, 60.0), "merged": merged}
        sweep = {"0.9": (Interval(79.0, 75.0, 83.0), Interval(0.0, 0.0, 5.0))}
        return trade_off_text(TradeOff(sides, [(0.0, "none")] * len(SIDES), sweep, 0.5))

    assert "Of t = 0.5, 0.9, 0.5 does so" in text(at(60.0, 50.0))
    assert "Of t = 0.5, 0.9, none does so" in text(at(42.0, 32.0))  # above, but not with both intervals
    assert "Of t = 0.5, 0.9, none does so" in text(at(20.0, 10.0))


def test_the_picture_is_the_same_for_the_same_scores_and_shows_the_sweep(tmp_path):
    first, again, without = trade_off_png(_found()), trade_off_png(_found()), trade_off_png(_found(None, ()))
    assert first == again != without
    place = tmp_path / "picture.png"
    place.write_bytes(first)
    assert matplotlib.image.imread(place).shape[:2] == (720, 960)
