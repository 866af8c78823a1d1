import pytest

from grass_jax.report.input_wait import InputWait


class Machine:
    """A device that computes while the host asks for the next batch, and a clock."""

    def __init__(self, step: float, read: float):
        self.now, self.done, self.step, self.read = 0.0, 0.0, step, read

    def idle(self) -> bool:
        return self.now >= self.done

    def batches(self, count: int):
        """The first takes a while; the others are read one after the other, also while the device computes."""
        ready = self.now + 30
        for number in range(count):
            self.now = max(self.now, ready)
            ready = self.now + self.read
            yield number

    def run(self, wait: InputWait, count: int, *, hook_at: int | None = None) -> None:
        """As the loop does: a step is begun, the one before it is waited for, the next batch is asked for."""
        for number in wait.over(self.batches(count)):
            before, self.done = self.done, max(self.now, self.done) + self.step
            self.now = max(self.now, before)
            if number == hook_at:
                self.now = self.done + 20


@pytest.mark.parametrize(
    ("step", "read", "share"),
    [(1.0, 0.5, 0), (1.0, 0.98, 0), (1.0, 1.05, 1), (1.0, 9.0, 1), (0.001, 9.0, 1)],
)
def test_batches_are_late_where_reading_takes_longer_than_the_step(step, read, share):
    machine = Machine(step, read)
    wait = InputWait(machine.idle, clock=lambda: machine.now)
    machine.run(wait, 20)
    assert wait.share() == share
    assert wait.share() is None
    machine.run(wait, 20)
    assert wait.share() == share


def test_what_is_done_between_two_steps_makes_no_batch_late():
    machine = Machine(step=1.0, read=0.5)
    wait = InputWait(machine.idle, clock=lambda: machine.now)
    machine.run(wait, 8, hook_at=3)
    assert wait.share() == 0


@pytest.mark.parametrize(("advise", "read", "said"), [(True, 2.0, 1), (True, 0.5, 0), (False, 2.0, 0)])
def test_it_is_said_once_where_it_lasts(advise, read, said, caplog):
    machine = Machine(step=1.0, read=read)
    wait = InputWait(machine.idle, clock=lambda: machine.now, advise=advise)
    for number in range(4):
        machine.run(wait, 5)
        wait.share()
        assert caplog.text.count("wait for the tiles of 100 % of the last steps") == (said if number else 0)
