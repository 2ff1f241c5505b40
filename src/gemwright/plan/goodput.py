"""Goodput: the share of a run's time whose steps are kept, by a formula and by a simulation of failures.

A run writes a checkpoint after every interval of work. A failure costs the work since the last whole checkpoint, and
the time to notice it, start again and load. Failures come at a constant rate. The best interval is that of Young (1974)
to first order; here the closed form of Daly ("A higher order estimate of the optimum checkpoint interval for restart
dumps", 2006) is minimized.
"""

import math
import random
from dataclasses import dataclass

HOUR = 3600.0


@dataclass(frozen=True)
class Failures:
    """How a run fails, and what saving and starting again cost. All times are in seconds.

    Attributes:
        between: Mean time between failures of the whole machine.
        restart: Time from a failure to the next step: to notice it, replace, start, compile and load.
        pause: Time that the steps wait for a checkpoint.
        write: Time after the pause until the checkpoint is whole, in which the steps go on.
    """

    between: float
    restart: float
    pause: float
    write: float = 0.0


def mean_time_between(chips: int, interruptions: int, chip_hours: float) -> float:
    """Return the mean time between failures of a machine in seconds.

    Args:
        chips: Its number of chips.
        interruptions: Number of failures that another machine had.
        chip_hours: Its chips times its hours.
    """
    return chip_hours / interruptions / chips * HOUR


def goodput(failures: Failures, interval: float) -> float:
    """Return the expected share of time whose work is kept.

    A cycle is an interval of work and the pause. Before one succeeds, `exp(cycle / between) - 1` fail on average, so
    that it takes `(between + restart) * (exp(cycle / between) - 1)`, if nothing fails while the run starts again. A
    failure while a checkpoint is written in the background costs another cycle, to first order.

    Args:
        failures: Their rate and costs.
        interval: Seconds of work between checkpoints.
    """
    cycle = interval + failures.pause
    odds = math.expm1(cycle / failures.between)
    lost = failures.write * cycle / failures.between
    return interval / ((failures.between + failures.restart) * odds + lost)


def best_interval(failures: Failures) -> float:
    """Return the seconds of work between checkpoints at which goodput is highest.

    Young's interval is `sqrt(2 * pause * between)`. The goodput is searched by golden sections around it.
    """
    young = math.sqrt(2 * max(failures.pause, 1e-3) * failures.between)
    low, high = young / 4, young * 2
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-3 * young:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if goodput(failures, left) > goodput(failures, right):
            high = right
        else:
            low = left
    return (low + high) / 2


def simulate(failures: Failures, interval: float, work: float, seed: int = 0) -> float:
    """Return the goodput of one run, simulated failure by failure.

    Args:
        failures: Their rate and costs; the times between failures are drawn from an exponential distribution.
        interval: Seconds of work between checkpoints.
        work: Seconds of work of the whole run.
        seed: Seed of the failures.
    """
    draw = random.Random(seed)
    now = done = 0.0  # time, and the work that is saved
    while done < work:
        left = draw.expovariate(1 / failures.between)  # until the next failure
        cycles = int(left / (interval + failures.pause))
        saved = cycles
        if cycles and left - cycles * (interval + failures.pause) < failures.write:
            saved -= 1  # the last checkpoint is not whole
        needed = math.ceil((work - done) / interval)
        if saved >= needed:
            return work / (now + needed * (interval + failures.pause) - (needed * interval - (work - done)))
        now += left + failures.restart
        done += saved * interval
    return work / now
