"""Times: exact nanoseconds from every form, and whether they can be those of events."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from dist_teracon.data.raw.times import Plausibility, Times, read_times
from dist_teracon.errors import DataError

MOMENT = 1_600_086_400 * 10**9  # 2020-09-14 12:26:40 UTC


def times(values, type=None, *, unit="s", zone: str | None = None) -> Times:
    column = pa.array(values, type or pa.string())
    return read_times(column, unit=unit, zone=ZoneInfo(zone) if zone else None, seen=Plausibility(unit))


@pytest.mark.parametrize(
    "text",
    [
        "2020-09-14 12:26:40", "2020-09-14T12:26:40", "2020-09-14T12:26:40Z", "2020-09-14 12:26:40 UTC", "2020-09-14 12:26:40.000 UTC",
        "2020-09-14 12:26:40+00", "2020-09-14 12:26:40+0000", "2020-09-14 12:26:40+00:00", "2020-09-14T21:26:40+09:00",
        "2020-09-14 21:26:40+09",
        "2020-09-14 07:56:40-0430", "1600086400", " 1600086400.0 ", "1.6000864e9", "+1600086400",
    ],
)  # fmt: skip
def test_forms_of_one_moment(text):
    read = times([text])
    assert (read.nanoseconds.tolist(), read.unreadable.tolist(), read.missing.tolist()) == ([MOMENT], [False], [False])


def test_a_date_alone_is_its_midnight_and_fractions_have_nine_digits():
    assert times(["2020-09-14", "2020-09-14 12:26"]).nanoseconds.tolist() == [1_600_041_600 * 10**9, 1_600_086_360 * 10**9]
    assert times(["2020-09-14 12:26:40.123456789123", "2020-09-14 12:26:40,5"]).nanoseconds.tolist() == [
        MOMENT + 123_456_789,
        MOMENT + 500_000_000,
    ]


@pytest.mark.parametrize(
    "text", ["2020-02-30", "2020-13-01", "2020-09-14 24:00", "2020-09-14 12:26:60", "2020-09-14T12:26:40+99", "noon", "0x1F", "1_6", "inf"]
)
def test_what_is_no_time(text):
    read = times([text, "2020-09-14"])
    assert read.unreadable.tolist() == [True, False]
    assert read.nanoseconds[1] == 1_600_041_600 * 10**9


@pytest.mark.parametrize(("unit", "scale"), [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
def test_numbers_are_exact_to_the_nanosecond(unit, scale):
    moment = MOMENT + 123_456_789 // scale * scale
    assert times([moment // scale], pa.int64(), unit=unit).nanoseconds.tolist() == [moment]
    assert times([moment // scale], pa.uint64(), unit=unit).nanoseconds.tolist() == [moment]
    assert times([str(moment // scale)], unit=unit).nanoseconds.tolist() == [moment]
    assert times(["1600086400123456789.9"], unit="ns").nanoseconds.tolist() == [MOMENT + 123_456_789]
    assert times(["1600086400.1234567891"], unit="s").nanoseconds.tolist() == [MOMENT + 123_456_789]


def test_floats_keep_what_they_hold():
    assert times([1_600_086_400.5, None, float("nan")], pa.float64()).nanoseconds.tolist() == [MOMENT + 500_000_000, 0, 0]
    assert times([1_600_086_400.5, None, float("nan")], pa.float64()).missing.tolist() == [False, True, True]


def test_times_that_64_bits_do_not_hold():
    read = times(["99999999999999999999", "9999-12-31", "1e30", "1600086400"])
    assert read.beyond.tolist() == [True, True, True, False]
    assert times([1_600_000_000_000], pa.int64()).beyond.tolist() == [True]


@pytest.mark.parametrize(
    ("values", "type", "want"),
    [
        ([date(2020, 9, 14)], pa.date32(), 1_600_041_600 * 10**9),
        ([1_600_041_600_000], pa.date64(), 1_600_041_600 * 10**9),
        ([1_600_086_400], pa.timestamp("s"), MOMENT),
        ([1_600_086_400_001], pa.timestamp("ms"), MOMENT + 10**6),
        ([MOMENT + 7], pa.timestamp("ns"), MOMENT + 7),
        ([MOMENT // 1000], pa.timestamp("us", "Asia/Seoul"), MOMENT),
    ],
)
def test_types_of_parquet(values, type, want):
    assert times(values, type).nanoseconds.tolist() == [want]
    assert times(values, type, unit="ms").nanoseconds.tolist() == [want]  # the unit is the type's


def test_local_times_are_of_the_stated_zone():
    seoul = times(["2020-09-14 21:26:40", "2020-09-14 12:26:40Z", "1600086400"], zone="Asia/Seoul")
    assert seoul.nanoseconds.tolist() == [MOMENT, MOMENT, MOMENT]
    assert times([1_600_118_800], pa.timestamp("s"), zone="Asia/Seoul").nanoseconds.tolist() == [MOMENT]
    # two o'clock comes twice when summer ends: the first of the two; half past two in spring does not come
    berlin = (
        times(["2021-10-31 02:30", "2021-10-31 03:00", "2021-03-28 02:30", "2021-07-01 12:00"], zone="Europe/Berlin").nanoseconds // 10**9
    )
    want = [datetime(2021, 10, 31, 0, 30), datetime(2021, 10, 31, 2), datetime(2021, 3, 28, 1, 30), datetime(2021, 7, 1, 10)]
    assert berlin.tolist() == [int(moment.replace(tzinfo=UTC).timestamp()) for moment in want]


def test_dates_of_digits():
    read = times(["20200914", "20200914122640", "202009141226", "20201301", "2020"], unit="date")
    assert read.nanoseconds[:3].tolist() == [1_600_041_600 * 10**9, MOMENT, 1_600_086_360 * 10**9]
    assert read.unreadable.tolist() == [False, False, False, True, True]
    assert times([20200914], pa.int32(), unit="date").nanoseconds.tolist() == [1_600_041_600 * 10**9]


def judged(values, type=None, *, unit="s", dates_matter=True) -> str | None:
    seen = Plausibility(unit)
    read_times(pa.array(values, type or pa.string()), unit=unit, zone=None, seen=seen)
    return seen.check("events.csv", "timestamp", dates_matter=dates_matter)


@pytest.mark.parametrize(
    ("values", "unit", "said"),
    [
        (["1600000000000"] * 4, "s", r"year 52672; they are ms: set columns\.timestamp_unit: ms"),
        (["1600000000"] * 4, "ms", r"year 1970; they are s: set columns\.timestamp_unit: s"),
        (["1600000000000000"] * 4, "ms", "timestamp_unit: us"),
        (["1600000000000000000"] * 4, "us", "timestamp_unit: ns"),
        (["20200914"] * 4, "s", r"dates of digits, as 20200131: set columns\.timestamp_unit: date"),
        (["20200914122640"] * 4, "ms", "timestamp_unit: date"),
        (["1600000000"] * 4, "date", "timestamp_unit: s"),
        (["1600000000"] * 50 + ["1600000000000"] * 50, "s", "50 of them are ms, the others are not"),
    ],
)
def test_another_unit_is_named(values, unit, said):
    for dates_matter in (False, True):
        with pytest.raises(DataError, match=said):
            judged(values, unit=unit, dates_matter=dates_matter)
    with pytest.raises(DataError, match=said):
        judged([int(value) for value in values], pa.int64(), unit=unit)


def test_times_that_count_from_somewhere_else_order_events_but_are_no_dates():
    line = judged(["0", "5", "9000"], dates_matter=False)
    assert line is not None
    assert "3 of 3 times lie outside of 1990 to 2100" in line
    assert "only their order is used" in line
    with pytest.raises(DataError, match="the recipe chooses events by date"):
        judged(["0", "5", "9000"])


def test_one_in_a_hundred_may_be_odd():
    assert "1 of 100 times lie outside of 1990 to 2100, as 0" in judged(["1600000000"] * 99 + ["0"])
    assert judged(["1600000000"] * 100) is None
    assert judged([MOMENT] * 4, pa.timestamp("ns")) is None
    with pytest.raises(DataError, match="4 of 4 times lie outside"):
        judged([MOMENT // 10**6] * 4, pa.timestamp("ns"))  # milliseconds that were written as nanoseconds


def test_local_times_change_to_the_minute():
    # clocks of St. John's went from 00:01 to 01:01 that night
    found = times(["1990-04-01 00:00:30", "1990-04-01 01:01:00", "1990-04-01 01:03:00"], zone="America/St_Johns").nanoseconds // 10**9
    assert [datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S") for moment in found.tolist()] == ["03:30:30", "03:31:00", "03:33:00"]


def test_doubles_are_the_numbers_that_they_stand_for():
    found = times([1_700_000_003.1, 1_700_000_003.123456, -1_700_000_003.1], pa.float64()).nanoseconds.tolist()
    assert found == [1_700_000_003_100_000_000, 1_700_000_003_123_456_000, -1_700_000_003_100_000_000]
    assert times([1_700_000_003_123.5], pa.float64(), unit="ms").nanoseconds.tolist() == [1_700_000_003_123_500_000]
    assert times([2.5e-9, 1.5], pa.float64()).nanoseconds.tolist() == [2, 1_500_000_000]
