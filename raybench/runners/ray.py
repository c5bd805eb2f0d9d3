"""Every task on Ray actors: one loop over ``ray.wait`` that carries out what `Dispatch` decides.

Placement and autoscaling are Ray's; which task goes where, how often, and when to stop is the
policy's. Actors are made with ``max_restarts=0`` and replaced from here: a restarting actor refuses
every call, which would blame tasks that never ran. Nothing durable passes through Ray.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
import ray._private.utils as ray_utils
import ray._private.worker as worker_module

from raybench.core.errors import InputError, Interrupted, RunError
from raybench.core.work import Event, Outcome, Receipt, Resources, Spent, Task, Worker
from raybench.runners.dispatch import Action, Dispatch, Start, Submit
from raybench.runners.inprocess import attempt, describe

__all__ = ["ray_session", "run_on_ray"]

POLL_S = 0.25
"""Longest time between two looks at `stop`."""

MAX_FACTORY_BYTES = 1 << 24  # a plan of a thousand models under ten evaluations takes one of them

LOCAL_MARK = "raybench_local"
"""Custom resource of the clusters started here, which nothing can grow."""

_QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "include_dashboard": False,
}


class _Actor:
    """One process that holds one worker. Loads nothing heavy until `setup`."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def setup(self, factory: bytes, path: list[str], num_threads: int) -> str | None:
        """Make the worker; return None, or the error that prevented it."""
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
        return None

    def run(self, task: Task) -> Receipt | Spent | str:
        """Return the receipt of `task`, or its error; see `attempt`."""
        assert self._worker is not None, "setup comes first"
        return attempt(self._worker, task)


class _Fleet:
    """The actors of one run and the calls they have not answered."""

    def __init__(self, factory: bytes, resources: Resources) -> None:
        self._make = ray.remote(_Actor).options(
            num_cpus=resources.cpus_per_actor,
            num_gpus=resources.gpus_per_actor,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
        )
        num_threads = max(1, int(resources.cpus_per_actor))
        self._setup = (ray.put(factory), [entry or os.getcwd() for entry in sys.path], num_threads)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, Task | None]] = {}

    def start(self, worker: int) -> None:
        actor: Any = self._make.remote()
        self._actors[worker] = actor
        self._calls[actor.setup.remote(*self._setup)] = (worker, None)

    def submit(self, worker: int, task: Task) -> None:
        self._calls[self._actors[worker].run.remote(task)] = (worker, task)

    def wait(self, timeout: float) -> list[tuple[int, Task | None, Any]]:
        """Return (worker, task, answer) of the calls that ended; an answer may be a RayError."""
        calls = list(self._calls)
        done, rest = ray.wait(calls, num_returns=1, timeout=timeout, fetch_local=True)
        if done and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=True)
            done += more
        return [(*self._calls.pop(call), _answer(call)) for call in done]

    def discard(self, worker: int) -> None:
        """Forget a lost actor, and end its process should it be only out of reach."""
        actor = self._actors.pop(worker, None)
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
        try:
            _carry_out(policy.begin(), fleet, listener)
            while todo:
                while not policy.over:
                    _raise_if_stopped(stop)
                    for worker, task, answer in fleet.wait(POLL_S):
                        _carry_out(_report(policy, fleet, worker, task, answer), fleet, listener)
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
    if isinstance(answer, Receipt):
        return policy.finished(worker, answer, now=time.monotonic())
    if task is not None and isinstance(answer, Spent):
        return policy.spent(worker, task, answer.text)
    if task is not None and isinstance(answer, str | ray.exceptions.RayTaskError):
        return policy.failed(worker, task, str(answer))
    if task is None and answer is None:
        return policy.ready(worker)
    fleet.discard(worker)
    return policy.lost(worker, answer if isinstance(answer, str) else _reason(answer))


def _carry_out(actions: list[Action], fleet: _Fleet, listener: Callable[[Event], None]) -> None:
    for action in actions:
        if isinstance(action, Start):
            fleet.start(action.worker)
        elif isinstance(action, Submit):
            fleet.submit(action.worker, action.task)
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
    alive = (node for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in alive]
    places = sum(_places(node, cpus, gpus) for node in nodes)
    asked = resources.actors or max(1, places)
    if num_tasks is not None:
        asked = min(asked, num_tasks)
    if asked > places:
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        text = (
            f"{asked} worker(s) of {cpus:g} CPU and {gpus:g} GPU each do not fit: the cluster has "
            f"{has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU on {len(nodes)} node(s), "
            f"room for {places}"
        )
        if LOCAL_MARK in has:
            raise InputError(f"{text}; lower actors, cpus_per_actor or gpus_per_actor")
        listener(Event(kind="note", text=f"{text}; the rest wait for the cluster to grow"))
    return asked


def _places(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many actors fit on a node; the margin absorbs sums of fractions like 0.1."""
    fits = int(node.get("CPU", 0) / cpus + 1e-6)
    return min(fits, int(node.get("GPU", 0) / gpus + 1e-6)) if gpus else fits


@contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """Hold a connection to Ray, and leave Ray as it was found.

    A process that is connected already stays so. Otherwise this joins ``resources.address`` or
    RAY_ADDRESS ("auto": whatever runs on this machine; "local": always a fresh cluster), else the
    cluster that ``ray start`` left here, else it starts a local cluster and ends that one on exit.
    A handler of SIGTERM set before is set again, since Ray puts its own in its place.

    Raises:
        InputError: no cluster answers at the address given, or it is not of that kind.
        Interrupted: SIGTERM came while Ray was starting; the exit code is 143.
        RunError: a local cluster did not start, twice.
    """
    if ray.is_initialized():
        yield
        return
    with _stdout_kept():
        yield from _session(resources)


def _session(resources: Resources) -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    with _sigterm_raises():
        _connect(resources)
    try:
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Send what Ray prints of the cluster's troubles to stderr: stdout is for results.

    Ray has no setting for it: its listener prints on stdout whatever ``log_to_driver`` says.
    """
    before = worker_module.print_to_stdstream

    def on_stderr(data: dict[str, Any], ignore_prefix: bool) -> None:
        before({**data, "is_err": True}, ignore_prefix)

    worker_module.print_to_stdstream = on_stderr
    try:
        yield
    finally:
        worker_module.print_to_stdstream = before


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Make SIGTERM an `Interrupted` while Ray starts, then set the handler of before again.

    ``ray.init`` puts in its own handler, which exits; code in Ray's start-up that catches
    everything may swallow that, and the process would go on as if nobody had asked. So Ray's
    handler waits until the start is over, and stays only where nobody had set another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.getsignal(signal.SIGTERM)
    set_handler = ray_utils.set_sigterm_handler
    seen: list[int] = []
    rays: list[Callable[[int, FrameType | None], Any]] = []

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if callable(before):
            before(number, frame)
        raise SystemExit(number)

    signal.signal(signal.SIGTERM, on_sigterm)
    ray_utils.set_sigterm_handler = rays.append
    try:
        yield
    except BaseException:
        if not seen:
            raise
    finally:
        ray_utils.set_sigterm_handler = set_handler
        signal.signal(signal.SIGTERM, before)
    if seen:
        ray.shutdown()
        raise Interrupted(128 + signal.SIGTERM)
    if before == signal.SIG_DFL and rays:
        signal.signal(signal.SIGTERM, rays[-1])


def _connect(resources: Resources) -> None:
    """Join the cluster that is named or running, or start one."""
    named = resources.address or os.environ.get("RAY_ADDRESS") or None
    left_here = ray_utils.read_ray_address()
    if named is None and left_here and _unreachable(left_here) is None:
        _join(None, f"the cluster that 'ray start' left here, {left_here!r}")
    elif named is None or named == "local":
        _start_local()
    else:
        source = f"{'the address' if resources.address else 'RAY_ADDRESS'} {named!r}"
        if "://" in named:
            raise InputError(
                f"{source} is not a cluster's own address: give HOST:PORT as printed by "
                "'ray start', or send the run to the cluster with 'ray job submit'"
            )
        trouble = None if named == "auto" else _unreachable(named)
        if trouble:
            raise _no_cluster(source, trouble)
        _join(named, source)


def _join(address: str | None, source: str) -> None:
    try:
        ray.init(address=address, **_QUIET)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise _no_cluster(source, _first_line(error)) from error


def _unreachable(address: str) -> str | None:
    """Return why nobody answers at HOST:PORT, else None. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "expected HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def _no_cluster(source: str, trouble: str) -> InputError:
    return InputError(
        f"no Ray cluster could be joined at {source} ({trouble}); start one with "
        "'ray start --head', or give the address 'local' to start one for this run"
    )


def _first_line(error: Exception) -> str:
    """Return the exception's kind and first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _start_local() -> None:
    """Start a cluster on this machine; a raylet that aborts at its start gets a second try."""
    for last in (False, True):
        try:
            ray.init(address="local", resources={LOCAL_MARK: 1}, **_QUIET)
        except Exception as error:  # a node that times out raises Exception itself
            ray.shutdown()
            if last:
                raise RunError(
                    f"Ray did not start on this machine ({_first_line(error)}); its logs are "
                    "under ray/session_latest/logs in the temporary folder"
                ) from error
        else:
            return
