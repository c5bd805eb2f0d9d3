"""The connection to Ray: join the cluster that is named or running, or start one on this machine.

    with ray_session(Resources(address="10.0.0.5:6379")):
        ...

Ray is left as it was found: a cluster that was started here ends with the block.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
import ray._private.utils as ray_utils
import ray._private.worker as worker_module
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from raybench.core.errors import InputError, Interrupted, RunError
from raybench.core.work import Resources

__all__ = ["LOCAL_MARK", "ray_session"]

LOCAL_MARK = "raybench_local"
"""Custom resource of the clusters started here, which nothing can grow."""

_QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "include_dashboard": False,
}


@contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """Hold a connection to Ray.

    A process that is connected already stays so. Otherwise this joins ``resources.address`` or
    RAY_ADDRESS ("auto": whatever runs on this machine; "local": always a fresh cluster), else the
    cluster that ``ray start`` left here, else it starts a local cluster and ends that one on exit.
    A handler of SIGTERM set before is set again, since Ray puts its own in its place.

    Raises:
        InputError: no cluster answers at the address given, it is not of that kind, or it does not
            take the token.
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
        source = f"the cluster that 'ray start' left here, {left_here!r}"
        _check_token(left_here, source)
        _join(None, source)
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
        if named != "auto":
            _check_token(named, source)
        _join(named, source)


def _join(address: str | None, source: str) -> None:
    try:
        ray.init(address=address, **_QUIET)
    except ray.exceptions.AuthenticationError as error:
        ray.shutdown()
        raise _shut_out(source, error.message) from error
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


def _check_token(address: str, source: str) -> None:
    """Refuse a cluster that does not take our token.

    ``ray.init`` tries for 20 seconds and then says that it could not connect; the reason is only
    among the warnings that it writes to stderr.
    """
    try:
        # As Ray does: with the token where RAY_AUTH_MODE says so, else without.
        with init_grpc_channel(address) as channel:
            stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            request = gcs_service_pb2.GetClusterIdRequest()  # type: ignore[attr-defined]
            stub.GetClusterId(request, timeout=10)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise _shut_out(source, str(error.details())) from error
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError):
        return  # Ray meets the same trouble and tells it


def _shut_out(source: str, trouble: str) -> InputError:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    token = "set" if os.environ.get("RAY_AUTH_TOKEN") else "not set"
    return InputError(
        f"Ray at {source} does not let this process in ({trouble}): it needs the "
        f"cluster's own token, with RAY_AUTH_MODE=token (now {mode}) and the token in "
        f"RAY_AUTH_TOKEN (now {token}), in the file that RAY_AUTH_TOKEN_PATH names, or in "
        "~/.ray/auth_token"
    )


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
