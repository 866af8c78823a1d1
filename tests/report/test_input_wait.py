import pytest

from grass_jax.report.input_wait import InputWait


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def read(clock, seconds):
    """Batches that take so many seconds each to arrive."""
    for number, taken in enumerate(seconds):
        clock.now += taken
        yield number


def test_the_share_is_that_of_the_time_since_it_was_last_asked(caplog):
    clock = Clock()
    wait = InputWait(clock)
    shares = []
    # the first batch has its readers to start: 7 s that say nothing of the steps
    for number in wait.over(read(clock, [7, 1, 3, 0, 0.2])):
        clock.now += 4  # the step
        if number in (0, 2, 4):
            shares.append(wait.share())
    assert shares == pytest.approx([0, (1 + 3) / (1 + 4 + 3 + 4), 0.2 / (4 + 0.2 + 4)])
    assert number == 4
    assert caplog.text.count("33 % of the time of the last steps went into waiting for tiles") == 1


def test_phases_have_readers_of_their_own_and_the_time_between_counts():
    clock = Clock()
    wait = InputWait(clock)
    for _ in range(2):
        for _ in wait.over(read(clock, [5, 1])):
            clock.now += 2
    assert wait.share() == pytest.approx((1 + 1) / (2 * (5 + 2 + 1 + 2)))


@pytest.mark.parametrize(("advise", "waited"), [(False, 9), (True, 0.3)])
def test_nothing_is_said_of_a_short_wait_nor_by_the_other_processes(advise, waited, caplog):
    clock = Clock()
    wait = InputWait(clock, advise=advise)
    for _ in wait.over(read(clock, [0, waited])):
        clock.now += 5
    wait.share()
    assert not caplog.text


def test_no_time_at_all_is_no_wait():
    assert InputWait(Clock()).share() == 0
