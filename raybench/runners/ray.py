"""Every task on Ray actors: one loop over ``ray.wait`` that carries out what `Dispatch` decides.

Placement and autoscaling are Ray's; which task goes where, how often, and when to stop is the
policy's. Actors are made with ``max_restarts=0`` and replaced from here: a restarting actor refuses
every call, which would blame tasks that never ran. Nothing durable passes through Ray.

Two signs tell that a worker ends soon: SIGTERM to its process, which `Notice` takes, and a node
that Ray calls draining (``ray start --block`` got SIGTERM: its workers hear nothing of it).
"""

import os
import sys
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state as ray_state
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

from raybench.core.errors import InputError, Interrupted
from raybench.core.work import Event, Outcome, Receipt, Released, Resources, Spent, Task, Worker
from raybench.runners.actions import Action, Start, Stop, Submit
from raybench.runners.dispatch import Dispatch
from raybench.runners.inprocess import describe
from raybench.runners.notice import SPARE_S, Notice, Reply
from raybench.runners.ray_session import LOCAL_MARK, ray_session

__all__ = ["ray_session", "run_on_ray"]

POLL_S = 0.25
"""Longest time between two looks at `stop`."""

MAX_FACTORY_BYTES = 1 << 24  # a plan of a thousand models under ten evaluations takes one of them

_LOOK_S = 1.0  # between two looks at which nodes are draining
_COUNT_S = 5.0  # between two looks at how many workers have room

# How Ray tells the death of a process, or of a node, that was asked to end.
_TOLD = ("The process receives a SIGTERM", "terminated expectedly: received SIGTERM")


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker is made, on this node."""

    node: str


class _Actor:
    """One process that holds one worker. Loads nothing heavy until `setup`."""

    def __init__(self, grace_s: float) -> None:
        self._worker: Worker | None = None
        self._notice = Notice(grace_s)
        self._notice.install()

    def setup(self, factory: bytes, path: list[str], num_threads: int) -> _Ready | str:
        """Make the worker; say where, or return the error that prevented it."""
        # Appended, so that what the cluster installed or unpacked for this job comes first.
        sys.path += [entry for entry in path if entry not in sys.path and os.path.isdir(entry)]
        # Read by OpenMP, MKL and OpenBLAS when they are loaded, which the factory does first.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(num_threads)
        try:
            self._worker = ray.cloudpickle.loads(factory)()
        except Exception as error:  # noqa: BLE001 - the driver decides what it means
            return describe(error)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(num_threads)
        return _Ready(ray.get_runtime_context().get_node_id())

    def run(self, task: Task, seconds: float | None) -> Reply:
        """Return the receipt of `task`, or what came instead; see `Notice.run`."""
        assert self._worker is not None, "setup comes first"
        return self._notice.run(self._worker, task, seconds)


class _Fleet:
    """The actors of one run and the calls they have not answered."""

    def __init__(self, factory: bytes, resources: Resources) -> None:
        self._make: Any = ray.remote(_Actor)
        self._options: dict[str, Any] = {
            "num_cpus": resources.cpus_per_actor,
            "num_gpus": resources.gpus_per_actor,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 1,
        }
        self._grace_s = resources.grace_s
        num_threads = max(1, int(resources.cpus_per_actor))
        self._setup = (ray.put(factory), [entry or os.getcwd() for entry in sys.path], num_threads)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, Task | None]] = {}
        self._nodes: dict[int, str] = {}
        self._avoid: dict[str, float] = {}  # nodes that may end soon: until when to keep off
        self._looked = 0.0

    def start(self, worker: int) -> None:
        now = time.monotonic()
        self._avoid = {node: until for node, until in self._avoid.items() if until > now}
        options = self._options
        if self._avoid:
            # A wish: on the only node there is, a worker is better than none.
            elsewhere: Any = {"ray.io/node-id": NotIn(*self._avoid)}  # type: ignore[no-untyped-call]
            strategy = NodeLabelSchedulingStrategy({}, soft=elsewhere)
            options = options | {"scheduling_strategy": strategy}
        actor: Any = self._make.options(**options).remote(self._grace_s)
        self._actors[worker] = actor
        self._calls[actor.setup.remote(*self._setup)] = (worker, None)

    def submit(self, worker: int, task: Task, seconds: float | None) -> None:
        self._calls[self._actors[worker].run.remote(task, seconds)] = (worker, task)

    def placed(self, worker: int, node: str) -> None:
        """Take note of the node that `worker` is on."""
        self._nodes[worker] = node

    def shun(self, worker: int) -> None:
        """Start no others where `worker` is, as long as its notice runs, if that can be helped."""
        if worker in self._nodes:
            self._avoid[self._nodes[worker]] = time.monotonic() + self._grace_s

    def ending(self) -> list[tuple[int, float]]:
        """Return (worker, seconds it has left) of those on nodes that are draining.

        Asks once a second at most, and tells each of them again every time.
        """
        now = time.monotonic()
        if not self._nodes or now - self._looked < _LOOK_S:
            return []
        self._looked = now
        draining = _draining()
        return [
            (worker, _time_left(draining[node], self._grace_s))
            for worker, node in self._nodes.items()
            if node in draining
        ]

    def wait(self, timeout: float) -> list[tuple[int, Task | None, Any]]:
        """Return (worker, task, answer) of the calls that ended; an answer may be a RayError."""
        calls = list(self._calls)
        done, rest = ray.wait(calls, num_returns=1, timeout=timeout, fetch_local=True)
        if done and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=True)
            done += more
        return [(*self._calls.pop(call), _answer(call)) for call in done]

    def discard(self, worker: int) -> None:
        """End an actor and forget it; one that is lost may be only out of reach."""
        actor = self._actors.pop(worker, None)
        self._nodes.pop(worker, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def close(self) -> None:
        for worker in list(self._actors):
            self.discard(worker)


def run_on_ray(
    make_worker: Callable[[], Worker],
    tasks: Iterable[Task],
    resources: Resources,
    *,
    listener: Callable[[Event], None],
    stop: Callable[[], int | None],
    more: Callable[[Outcome], Iterable[Task]] | None = None,
) -> Outcome:
    """Return what Ray actors achieved; joins or starts a cluster as `ray_session` does.

    `make_worker` is pickled and called once in each actor, so it is small (under 16 MB) and what it
    names can be imported there: the driver's working folder and ``sys.path`` are searched last.
    With `actors` left open, nodes that join later get workers within seconds.

    Raises:
        InputError: the actors asked for can never be placed, or the address is of no use.
        Interrupted: `stop` gave an exit code; the actors are killed first.
        RunError: Ray could not be started.
    """
    todo = list(tasks)
    if not todo:
        return Outcome()
    assert len(set(todo)) == len(todo), "the same task twice"
    factory = ray.cloudpickle.dumps(make_worker)  # type: ignore[no-untyped-call]
    assert len(factory) < MAX_FACTORY_BYTES, f"make_worker pickles to {len(factory)} bytes"
    with ray_session(resources):
        _raise_if_stopped(stop)
        # What comes later may be more than the first tasks: then every place counts.
        slots = _num_actors(resources, None if more else len(todo), listener)
        policy = Dispatch(
            todo,
            slots=slots,
            max_attempts=resources.max_attempts,
            no_progress_s=resources.no_progress_s,
            now=time.monotonic(),
        )
        fleet = _Fleet(factory, resources)
        counted = time.monotonic()
        try:
            _carry_out(policy.begin(), fleet, listener)
            while todo:
                while not policy.over:
                    _raise_if_stopped(stop)
                    if resources.actors is None and time.monotonic() - counted > _COUNT_S:
                        counted = time.monotonic()
                        room = _room(resources, without=_draining())
                        _carry_out(policy.widen(room), fleet, listener)
                    for worker, task, answer in fleet.wait(POLL_S):
                        _carry_out(_report(policy, fleet, worker, task, answer), fleet, listener)
                    for worker, left in fleet.ending():
                        now, why = time.monotonic(), "its node is told to end"
                        actions = policy.leaving(worker, why, now=now, until=now + left)
                        _carry_out(actions, fleet, listener)
                    _carry_out(policy.tick(time.monotonic()), fleet, listener)
                outcome = policy.outcome()
                todo = [] if more is None or outcome.gave_up else list(more(outcome))
                _carry_out(policy.add(todo, now=time.monotonic()), fleet, listener)
        finally:
            fleet.close()
    return policy.outcome()


def _raise_if_stopped(stop: Callable[[], int | None]) -> None:
    code = stop()
    if code is not None:
        raise Interrupted(code)


def _answer(call: Any) -> Any:
    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        return error


def _report(
    policy: Dispatch, fleet: _Fleet, worker: int, task: Task | None, answer: Any
) -> list[Action]:
    """Tell the policy what an answer means; return what it decides."""
    now = time.monotonic()
    before: list[Action] = []
    if isinstance(answer, Reply):
        if answer.leaving:
            fleet.shun(worker)
            before = policy.leaving(worker, answer.leaving, now=now)
        answer = answer.answer
    if isinstance(answer, Receipt):
        return before + policy.finished(worker, answer, now=now)
    if task is not None and isinstance(answer, Released):
        return before + policy.released(worker, task, answer.text, now=now)
    if task is not None and isinstance(answer, Spent):
        return before + policy.spent(worker, task, answer.text)
    if task is not None and isinstance(answer, str | ray.exceptions.RayTaskError):
        return before + policy.failed(worker, task, str(answer))
    if isinstance(answer, _Ready):
        fleet.placed(worker, answer.node)
        return policy.ready(worker)
    told = isinstance(answer, ray.exceptions.RayActorError) and _was_told(answer)
    if told:
        fleet.shun(worker)
    fleet.discard(worker)
    reason = answer if isinstance(answer, str) else _reason(answer)
    return policy.lost(worker, reason, told=told)


def _was_told(error: ray.exceptions.RayActorError) -> bool:
    """Return whether the actor died of being asked to, itself or its node: no fault of its task."""
    return bool(error.preempted) or any(sign in str(error) for sign in _TOLD)


def _draining() -> dict[str, int]:
    """Return the nodes that were told to end -> when, in milliseconds of the epoch; 0: unknown."""
    try:
        return dict(ray_state.state.get_draining_nodes())
    except Exception:  # noqa: BLE001 - whatever keeps Ray from answering shows in the calls
        return {}


def _time_left(deadline_ms: int, grace_s: float) -> float:
    """Return the seconds until a node ends, some kept for answers; clocks of nodes may differ."""
    left = deadline_ms / 1000 - time.time() if deadline_ms > 0 else grace_s
    return max(0.0, left - SPARE_S)


def _carry_out(actions: list[Action], fleet: _Fleet, listener: Callable[[Event], None]) -> None:
    for action in actions:
        if isinstance(action, Start):
            fleet.start(action.worker)
        elif isinstance(action, Submit):
            fleet.submit(action.worker, action.task, action.seconds)
        elif isinstance(action, Stop):
            fleet.discard(action.worker)
        else:
            listener(action)


def _reason(error: Exception) -> str:
    """Return Ray's account of a death on one line, without its ids and its page of guesses."""
    text = " ".join(str(error).split())
    for start in ("Worker exit type:", "The actor is dead because"):
        at = text.find(start)
        if at >= 0:
            text = text[at:]
            break
    account, guesses, _ = text.partition(" Some common causes include:")
    if guesses:
        account += " (killed, out of memory, or crashed)"
    return f"{type(error).__name__}: {account[:600]}"


def _num_actors(
    resources: Resources, num_tasks: int | None, listener: Callable[[Event], None]
) -> int:
    """Return how many actors to use, for `num_tasks` tasks at most, or for more than are known.

    Refuses what a cluster started here can never hold.
    """
    cpus, gpus = resources.cpus_per_actor, resources.gpus_per_actor
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"gpus_per_actor above 1 must be a whole number, found {gpus:g}")
    places = _room(resources)
    asked = resources.actors or max(1, places)
    if num_tasks is not None:
        asked = min(asked, num_tasks)
    if asked > places:
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        text = (
            f"{asked} worker(s) of {cpus:g} CPU and {gpus:g} GPU each do not fit: the cluster has "
            f"{has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU on {len(_alive())} node(s), "
            f"room for {places}"
        )
        if LOCAL_MARK in has:
            raise InputError(f"{text}; lower actors, cpus_per_actor or gpus_per_actor")
        listener(Event(kind="note", text=f"{text}; the rest wait for the cluster to grow"))
    return asked


def _room(resources: Resources, *, without: Container[str] = ()) -> int:
    """Return how many workers fit on the nodes there are, whatever else is at work on them."""
    cpus, gpus = resources.cpus_per_actor, resources.gpus_per_actor
    nodes = (node["Resources"] for node in _alive() if node["NodeID"] not in without)
    return sum(_places(node, cpus, gpus) for node in nodes)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _places(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many actors fit on a node; the margin absorbs sums of fractions like 0.1."""
    fits = int(node.get("CPU", 0) / cpus + 1e-6)
    return min(fits, int(node.get("GPU", 0) / gpus + 1e-6)) if gpus else fits
