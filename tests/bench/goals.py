"""What each measured figure should be, so that a table says which goals are met."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["GOALS", "Goal", "goal_of"]


class Goal(NamedTuple):
    """A bound on the median: at most `limit`, or at least it."""

    limit: float
    at_most: bool = True

    def met(self, median: float) -> bool:
        """Return whether `median` reaches it."""
        return median <= self.limit if self.at_most else median >= self.limit

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"


def least(limit: float) -> Goal:
    return Goal(limit, at_most=False)


# By the start of the name; the longest that fits counts.
GOALS: Mapping[str, Goal] = {
    "lime_over_forward_": Goal(1.05),
    "lime_over_forward_cnn3_32_superpixel": Goal(1.10),
    "lime_package_batch10_over_ours_free_32": least(30),
    "lime_package_batch10_over_ours_free_224": least(25),
    "lime_package_batch250_over_ours_cnn3": least(1.6),
    "captum_batch1_over_ours_cnn3": least(5),
    "captum_batch100_over_ours_cnn3": least(2),
    "weights_variance_hadamard_over_bernoulli_": Goal(0.5),
    "two_actors_over_one": least(1.8),
    "dispatch_share_": Goal(0.02),
    "ray_driver_cpu_ms_per_task": Goal(5),
    "resume_s_per_shard": Goal(2e-4),
    "memory_growth_1e3_to_1e6": Goal(1.25),
    "memory_bytes_per_shard": Goal(3000),
}


def goal_of(name: str) -> Goal | None:
    """Return the goal of the figure `name`, or None where there is none."""
    fitting = [prefix for prefix in GOALS if name.startswith(prefix)]
    return GOALS[max(fitting, key=len)] if fitting else None
