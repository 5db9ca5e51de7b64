"""A person sees how the run goes; a log gets one line a step; the terminal is given back."""

import io
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from rlpost.observe import Console
from rlpost.observe.console import sparkline

METRICS = {
    "reward/mean": 0.4123,
    "train/pass@1": 0.39,
    "length/mean": 112.5,
    "kl/frozen": 0.0021,
    "mismatch/logp_abs_max": 1.2e-5,
    "tokens_per_second": 1834.2,
    "time/generate": 3.0,
    "time/verify": 0.2,
    "time/learn": 2.5,
    "time/sync": 0.1,
    "time/total": 6.0,
}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Utf8(io.StringIO):
    encoding = "utf-8"


def plain(total: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console("plain", total, RichConsole(file=out, width=60)), out


def live(total: int = 100) -> tuple[Console, io.StringIO]:
    out = Utf8()
    return Console("live", total, RichConsole(file=out, width=110, force_terminal=True, color_system=None)), out


def test_plain_is_one_line_a_step_with_the_numbers_however_narrow_the_output() -> None:
    console, out = plain()
    with console:
        console.step(12, METRICS)
        console.step(13, {})
        console.step(14, METRICS | {"time/drain": 1.5})
    first, second, overlapped = out.getvalue().splitlines()
    assert "learn 2.5s  drain 1.5s  sync 0.1s" in overlapped
    assert "drain" not in first + second
    for part in ("step 12/100", "reward 0.4123", "pass@1 0.39", "length 112.5", "kl/frozen 0.0021", "tokens/s 1834"):
        assert part in first
    for part in ("mismatch 1.2e-05", "generate 3.0s", "verify 0.2s", "learn 2.5s", "sync 0.1s", "total 6.0s"):
        assert part in first
    assert "left 8m48s" in first  # 88 steps of 6 s
    for part in ("step 13/100", "reward -", "pass@1 -", "kl -", "total -"):
        assert part in second


def test_plain_says_a_phase_once_and_keeps_brackets_and_warnings() -> None:
    console, out = plain()
    with console:
        for _ in range(3):
            console.phase("starting engines")
            console.phase("learning")
        console.info("see [bold]this[/bold] [red]")
        console.warn("slow disk")
    assert out.getvalue().splitlines() == [
        "starting engines",
        "learning",
        "see [bold]this[/bold] [red]",
        "warning: slow disk",
    ]


def test_off_says_only_warnings() -> None:
    out = io.StringIO()
    with Console("off", 10, RichConsole(file=out)) as console:
        console.phase("x")
        console.step(1, METRICS)
        console.info("x")
        console.evaluation("x", {"pass@1": (0.1, 0.0, 0.2)})
        console.summary({}, {}, 1, 1.0, {})
        console.warn("look here")
    assert out.getvalue() == "warning: look here\n"


def test_auto_is_live_on_a_terminal_and_plain_elsewhere() -> None:
    assert Console("auto", 1, RichConsole(file=io.StringIO(), force_terminal=True)).mode == "live"
    assert Console("auto", 1, RichConsole(file=io.StringIO())).mode == "plain"


def test_live_shows_the_numbers_the_phase_and_the_trend_in_a_panel() -> None:
    console, out = live()
    with console:
        console.phase("generating")
        for step, reward in enumerate((0.1, 0.5, 0.9), start=1):
            console.step(step, METRICS | {"reward/mean": reward})
    last = out.getvalue().rpartition("╭")[2]
    for part in ("step 3/100", "0.9", "pass@1", "0.39", "kl/frozen", "0.0021", "generate 3.0s", "left 9m42s"):
        assert part in last
    assert "generating (0s)" in last
    assert "▁▅█" in last or "▁▄█" in last


def test_live_shows_dashes_before_the_first_step() -> None:
    console, out = live()
    with console:
        console.step(0, {})
    assert "left -" in out.getvalue()
    assert "reward  -" in out.getvalue()


def test_live_shows_a_trend_in_figures_where_bars_cannot_be_printed() -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

    out = Ascii()
    with Console("live", 9, RichConsole(file=out, width=110, force_terminal=True, color_system=None)) as console:
        console.step(1, {"reward/mean": 0.1})
        console.step(2, {"reward/mean": 0.3})
    assert "0.1 to 0.3" in out.getvalue()
    assert out.getvalue().isascii()


def test_the_cursor_comes_back_after_an_exception() -> None:
    console, out = live()

    def fail() -> None:
        with console:
            console.step(1, METRICS)
            raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        fail()
    shown = out.getvalue()
    assert shown.count(HIDE_CURSOR) == shown.count(SHOW_CURSOR) == 1
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


def test_after_the_panel_is_closed_lines_are_plain() -> None:
    console, out = live()
    with console:
        console.step(1, METRICS)
    before = len(out.getvalue())
    console.info("done")
    assert out.getvalue()[before:] == "done\n"


@pytest.mark.parametrize("make", [plain, live])
def test_an_evaluation_is_shown_with_its_intervals(make) -> None:
    console, out = make()
    with console:
        console.evaluation("evaluation before", {"pass@1": (0.25, 0.2, 0.3), "pass@8": (0.5, 0.4, 0.6)})
    assert "evaluation before  pass@1 0.250 [0.200, 0.300]  pass@8 0.500 [0.400, 0.600]" in out.getvalue()


@pytest.mark.parametrize("make", [plain, live])
def test_the_summary_shows_before_after_difference_totals_and_whole_paths(make) -> None:
    console, out = make()
    path = Path("/runs") / ("long" * 40)
    with console:
        console.summary(
            {"pass@1": (0.25, 0.2, 0.3)}, {"pass@1": (0.75, 0.7, 0.8), "pass@8": (0.9, 0.8, 1)}, 20, 3725, {"run": path}
        )
    shown = " ".join(out.getvalue().split())
    assert "pass@1 0.250 [0.200, 0.300] 0.750 [0.700, 0.800] +0.500" in shown
    assert "pass@8 - 0.900 [0.800, 1.000] -" in shown
    assert "20 steps in 1h02m" in shown
    assert f"run {path}" in shown


def test_a_sparkline_spans_lowest_to_highest_and_marks_what_is_not_finite() -> None:
    assert sparkline([0.0, 7.0, float("nan"), float("inf")]) == "▁█??"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""
