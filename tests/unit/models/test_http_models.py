"""Models behind real servers on this machine: same answers, paid once, identities that hold."""

import gc
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from http_servers import (
    FAULTS,
    FaultyProxy,
    Server,
    as_json,
    count_images,
    from_png,
    logits,
    mlflow_route,
    running,
    serving,
    serving_asgi,
    softmax,
)
from v2_server import V2Server

from raybench.core.catalog import load_model
from raybench.core.errors import AccessError, BudgetSpentError, OutputError, SpecError
from raybench.core.spec import parse
from raybench.core.types import Access, Model
from raybench.models.check import check_outputs
from raybench.models.http import spent

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))
EXPECTED = softmax(IMAGES.numpy())


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/invocations": mlflow_route()}) as server:
        yield server


def mlflow_spec(server: Server, **options: object) -> str:
    base = {"protocol": "mlflow", "shape": "1x8x8", "classes": 10, "backoff": 0.01} | options
    tail = "&".join(f"{name}={value}" for name, value in base.items() if value is not None)
    return f"{server.url}/invocations?{tail}"


def test_it_answers_as_the_network_behind_it(server: Server) -> None:
    model = load_model(mlflow_spec(server, name="toy"))
    assert isinstance(model, Model)
    assert (model.info.name, model.info.access, model.info.num_classes) == (
        "toy",
        Access.SCORES,
        10,
    )
    assert check_outputs(model, IMAGES[:8]) == []
    found = model.probabilities(IMAGES)
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), EXPECTED.astype(np.float64))
    np.testing.assert_array_equal(model.labels(IMAGES).numpy(), EXPECTED.argmax(1))
    with pytest.raises(AccessError):
        model.logits(IMAGES)
    with pytest.raises(AccessError):
        model.activations(IMAGES, ["a"])


def test_logits_and_lower_access(server: Server) -> None:
    server.routes["/invocations"] = mlflow_route(predict=logits)
    model = load_model(mlflow_spec(server, output="logits"))
    assert model.info.access == Access.LOGITS
    assert check_outputs(model, IMAGES[:8]) == []
    np.testing.assert_array_equal(model.logits(IMAGES).numpy(), logits(IMAGES.numpy()))
    np.testing.assert_allclose(model.probabilities(IMAGES).numpy(), EXPECTED, atol=1e-6)
    labels = load_model(mlflow_spec(server, output="logits", access="labels"))
    assert (labels.info.access, labels.info.fingerprint) == (
        Access.LABELS,
        model.info.fingerprint,
    )
    assert check_outputs(labels, IMAGES[:8]) == []
    np.testing.assert_array_equal(labels.labels(IMAGES).numpy(), EXPECTED.argmax(1))
    with pytest.raises(AccessError):
        labels.probabilities(IMAGES)
    with pytest.raises(OutputError, match=r"sum to.*output=logits"):
        check_outputs(load_model(mlflow_spec(server, version="2")), IMAGES[:8])


def test_requests_are_cut_in_order_and_asked_side_by_side(server: Server) -> None:
    model = load_model(mlflow_spec(server, batch=16, concurrency=3))
    model.probabilities(IMAGES)
    asked = [np.array(json.loads(body)["inputs"], np.float32) for *_, body in server.seen]
    parts = sorted((part for part in asked), key=len, reverse=True)
    assert [len(part) for part in parts] == [16, 16, 8]
    expected = {part.numpy().tobytes() for part in IMAGES.split(16)}
    assert {part.tobytes() for part in asked} == expected
    assert model.paid == 40


def test_nothing_is_paid_twice(server: Server) -> None:
    spec = mlflow_spec(server, batch=16)
    first = load_model(spec)
    check_outputs(first, IMAGES[:8])
    before = first.probabilities(IMAGES)
    assert first.paid == 17 + 40
    count = len(server.seen)
    again = load_model(spec)
    assert check_outputs(again, IMAGES[:8]) == []
    assert torch.equal(again.probabilities(IMAGES), before)
    assert (again.paid, len(server.seen)) == (0, count)
    assert spent(parse(spec)) == (57, None)
    forgetful = load_model(f"{spec}&cache=false")
    forgetful.probabilities(IMAGES)
    forgetful.probabilities(IMAGES)
    assert forgetful.paid == 80


def test_answers_are_of_one_model_and_version(server: Server) -> None:
    load_model(mlflow_spec(server)).probabilities(IMAGES)
    server.routes["/invocations"] = mlflow_route(seed=1)
    stale = load_model(mlflow_spec(server)).probabilities(IMAGES)
    np.testing.assert_array_equal(stale.numpy(), EXPECTED.astype(np.float64))
    fresh = load_model(mlflow_spec(server, version="2")).probabilities(IMAGES)
    np.testing.assert_array_equal(fresh.numpy(), softmax(IMAGES.numpy(), 1).astype(np.float64))
    labels = load_model(mlflow_spec(server, access="labels")).labels(IMAGES)
    np.testing.assert_array_equal(labels.numpy(), softmax(IMAGES.numpy(), 1).argmax(1))


def test_what_changes_no_answer_is_no_part_of_the_identity(server: Server) -> None:
    plain = load_model(mlflow_spec(server)).info.fingerprint
    same = {
        "budget": 1000, "rps": 5, "timeout": 3, "retries": 1, "concurrency": 2, "cache": "false",
        "batch": 7, "backoff": 1, "allow": "127.0.0.1", "name": "n", "header": "x-api-key",
        "access": "labels",
    }  # fmt: skip
    for name, value in same.items():
        assert load_model(mlflow_spec(server, **{name: value})).info.fingerprint == plain, name
    other = {
        "version": "2", "shape": "1x0x0", "classes": 11, "output": "logits", "layout": "nhwc",
        "format": "instances", "mean": 0.5, "topk": 3, "renormalise": "true", "encoding": "png",
    }  # fmt: skip
    found = [plain]
    for name, value in other.items():
        more = {"std": 0.25} if name == "mean" else {}
        found.append(load_model(mlflow_spec(server, **{name: value}, **more)).info.fingerprint)
    assert len(set(found)) == len(found)
    assert server.seen == []  # all that without asking anything


def test_the_spec_of_the_info_loads_the_same(server: Server) -> None:
    for options in ({}, {"budget": 100}, {"version": "2026-10 a/b", "budget": 5}):
        info = load_model(mlflow_spec(server, **options)).info
        assert parse(info.spec).canonical() == info.spec
        assert load_model(info.spec).info == info
        assert info.spec.startswith(f"{server.url}/invocations?")


def test_a_worker_that_sees_another_ledger_refuses(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_model(mlflow_spec(server, budget=100)).info.spec
    assert "ledger=" in spec
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(SpecError, match="RAYBENCH_CACHE to a shared folder"):
        load_model(spec)
    without = load_model(f"{spec.replace('budget=100', '')}").info.spec
    assert "ledger" not in without


def test_a_budget_is_never_exceeded_and_kept_answers_stay_free(server: Server) -> None:
    model = load_model(mlflow_spec(server, batch=8, budget=25))
    with pytest.raises(BudgetSpentError, match=r"24 of 25 queries are spent.*larger budget="):
        model.probabilities(IMAGES)
    assert sum(count_images(body) for *_, body in server.seen) == model.paid == 24
    more = load_model(mlflow_spec(server, batch=8, budget=40))
    more.probabilities(IMAGES)
    assert sum(count_images(body) for *_, body in server.seen) == 40
    assert (more.paid, spent(parse(mlflow_spec(server, budget=40)))) == (16, (40, 40))
    load_model(mlflow_spec(server, batch=8, budget=1)).probabilities(IMAGES)


def test_a_randomised_api_is_found_out_though_answers_are_kept(server: Server) -> None:
    rng = np.random.default_rng(0)

    def noisy(images: np.ndarray, seed: int) -> np.ndarray:
        return softmax(images + rng.normal(0, 0.2, images.shape))

    server.routes["/invocations"] = mlflow_route(predict=noisy)
    for access in ("scores", "labels"):
        model = load_model(mlflow_spec(server, access=access, version=access))
        [warning] = check_outputs(model, IMAGES[:8])
        assert "randomised" in warning
        paid = model.paid
        assert check_outputs(model, IMAGES[:8]) == [warning]
        assert model.paid == paid


def test_an_api_that_looks_at_the_batch_is_found_out(server: Server) -> None:
    def coupled(images: np.ndarray, seed: int) -> np.ndarray:
        return softmax(images - images.mean(0, keepdims=True))

    server.routes["/invocations"] = mlflow_route(predict=coupled)
    [warning] = check_outputs(load_model(mlflow_spec(server)), IMAGES[:8])
    assert "depend on batching" in warning


def test_nan_is_an_answer_when_it_stays(server: Server) -> None:
    def broken(images: np.ndarray, seed: int) -> np.ndarray:
        found = softmax(images)
        found[images[:, 0, 0, 0] > 0.5] = np.nan
        return found

    server.routes["/invocations"] = mlflow_route(predict=broken)
    model = load_model(mlflow_spec(server))
    with pytest.raises(OutputError, match="NaN or infinite"):
        check_outputs(model, IMAGES[:8])
    found = model.probabilities(IMAGES)
    bad = IMAGES[:, 0, 0, 0] > 0.5
    assert bool(found[bad].isnan().all())
    np.testing.assert_array_equal(found[~bad].numpy(), EXPECTED[~bad.numpy()].astype(np.float64))


def test_faults_change_no_bit(server: Server) -> None:
    quiet = load_model(mlflow_spec(server, batch=4))
    expected = [quiet.probabilities(part) for part in IMAGES.split(20)]
    proxy = FaultyProxy(upstream=server.server_port, seed=1, slow_s=0.4)
    with running(proxy.server()) as faulty:
        spec = mlflow_spec(server, batch=4, timeout=0.3).replace(
            str(server.server_port), str(faulty.server_port)
        )
        model = load_model(spec)
        for draw in range(4):  # more requests, so that every fault gets its turn
            view = model
            for _ in range(draw):
                view = view.again()
            for part, wanted in zip(IMAGES.split(20), expected, strict=True):
                assert torch.equal(view.probabilities(part), wanted)
        assert model.paid == proxy.images > 4 * 40
    assert set(proxy.faults) == set(FAULTS)


JSON_API = """
request: {model: digits-v3, instances: [{}]}
image: instances.*.image.b64
encoding: png
scores: results.*.classes
label: name
score: confidence
"""
NAMES = [f"digit {index}" for index in range(10)]


def custom_api(topk: int) -> Any:
    """Return a route that tells the `topk` most likely classes, by name, of base64 PNGs."""

    def answer(body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        content = json.loads(body)
        assert content["model"] == "digits-v3"
        images = np.stack([from_png(one["image"]["b64"]) for one in content["instances"]])
        results = []
        for row in softmax(images).astype(float):
            best = sorted(range(10), key=lambda index, row=row: -row[index])[:topk]
            random.Random(0).shuffle(best)
            told = [{"name": NAMES[index], "confidence": row[index]} for index in best]
            results.append({"classes": told if topk > 1 else told[0]["name"]})
        return as_json({"results": results})

    return answer


@pytest.mark.parametrize("topk", [10, 3, 1])
def test_a_custom_api_of_pngs_by_a_template(topk: int, tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text(JSON_API)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    bytes_ = (IMAGES * 255).round() / 255
    expected = softmax(bytes_.numpy())
    more = {10: "", 3: "&topk=3", 1: "&access=labels"}[topk]
    with serving({"/v1/classify": custom_api(topk)}) as server:
        model = load_model(
            f"{server.url}/v1/classify?protocol=json&template={tmp_path}/api.yaml&shape=1x8x8"
            f"&classes=10&labels={tmp_path}/names.txt{more}"
        )
        warnings = check_outputs(model, IMAGES[:8])
        assert model.info.name == f"classify@127.0.0.1:{server.server_port}"
        assert "PNG of 8 bits" in warnings[0]
        assert len(warnings) == (2 if topk == 3 else 1)
        np.testing.assert_array_equal(model.labels(IMAGES).numpy(), expected.argmax(1))
        if topk == 1:
            return
        found = model.probabilities(IMAGES).numpy()
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        best = np.sort(expected, 1)[:, -topk:]
        np.testing.assert_allclose(np.sort(found, 1)[:, -topk:], best, atol=1e-6)
        paid = model.paid
        model.probabilities(bytes_)  # the very same bytes: one question
        assert model.paid == paid


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ({}, "", 0),
        ({}, "&binary=true", 0),
        ({}, "&input=image&shape=1x8x8&classes=10", 0),
        ({"nested": True}, "", 0),
        ({"layout": "nhwc"}, "&layout=nhwc", 0),
        ({"second": True}, "&scores=scores&binary=true", 0),
        ({"datatype": "UINT8"}, "", 0.02),
        ({"datatype": "FP16"}, "&binary=true", 0.005),
    ],
)
def test_protocol_v2(kind: dict[str, Any], options: str, tolerance: float) -> None:
    server = V2Server(**kind)
    with serving_asgi(server.app) as url:
        model = load_model(f"{url}/v2/models/digits?protocol=v2{options}")
        warnings = check_outputs(model, IMAGES[:8])
        assert len(warnings) == (1 if tolerance else 0)
        found = model.probabilities(IMAGES).numpy()
        np.testing.assert_allclose(found, EXPECTED.astype(np.float64), rtol=0, atol=tolerance)
        assert model.info.name.startswith("digits@127.0.0.1:")
        assert load_model(model.info.spec).info.fingerprint == model.info.fingerprint
    if not tolerance:
        np.testing.assert_array_equal(np.concatenate(server.seen[-2:]).shape[1:], (1, 8, 8))


def test_v2_classification_tells_the_top_classes() -> None:
    with serving_asgi(V2Server().app) as url:
        spec = f"{url}/v2/models/digits?protocol=v2&topk=4"
        model = load_model(spec)
        assert "scores=scores" in model.info.spec
        found = model.probabilities(IMAGES).numpy()
        best = np.sort(EXPECTED, 1)[:, -4:]
        np.testing.assert_allclose(np.sort(found, 1)[:, -4:], best, atol=1e-5)
        labels = load_model(f"{spec}&access=labels").labels(IMAGES)
        np.testing.assert_array_equal(labels.numpy(), EXPECTED.argmax(1))


def test_v2_metadata_that_does_not_fit_is_refused() -> None:
    with serving_asgi(V2Server(second=True).app) as url:
        base = f"{url}/v2/models/digits?protocol=v2"
        with pytest.raises(SpecError, match=r"scores= must be one of.*features, scores"):
            load_model(base)
        with pytest.raises(SpecError, match=r"input= must be one of.*image; found pixels"):
            load_model(f"{base}&input=pixels&scores=scores")
        with pytest.raises(SpecError, match=r"404.*the spec needs input=, shape=, classes="):
            load_model(f"{url}/v2/models/absent?protocol=v2")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("http://h/x", "protocol= must say how"),
        ("http://h/x?protocol=mlfow", "did you mean mlflow"),
        ("http://h/x?protocol=mlflow&classes=10", "shape= must say"),
        ("http://h/x?protocol=mlflow&shape=1x8x8", "classes= must say"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=1", "at least 2"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&binary=true", "belongs to protocol=v2"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&budgt=3", "did you mean budget"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&budget=0", "at least 1"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&rps=0", "above 0"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&access=gradients", "above what"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&access=logits", "output=logits"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&topk=3", "more than classes=2"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=5&topk=3&output=logits", "unknown"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&mean=0.5&std=0.5&encoding=png", "bytes"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&mean=0,0&std=1,1", "1 or 1 values"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&format=dataframe_split&layout=nchw",
         "layout=flat"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&header=Host", "bearer, basic"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&labels=/nowhere", "cannot be read"),
        ("http://h/x?protocol=mlflow&shape=1x8x8&classes=2&concurrency=65", "at most 64"),
        ("http://h/x?protocol=json&shape=1x8x8&classes=2", "template= must name"),
        ("http://h/x?protocol=v2&shape=1x8x8&classes=2&input=x", "expected http://host:port/v2"),
        ("http://h/v2/models/m?protocol=v2&shape=1x8x8&classes=2&input=x&datatype=FP16",
         "binary=true"),
        ("http://h/v2/models/m?protocol=v2&shape=1x8x8&classes=2&input=x&datatype=BF16",
         "FP32 or FP64"),
    ],
)  # fmt: skip
def test_wrong_options_are_named_before_anything_is_asked(spec: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_model(spec)


def test_credentials_in_options_are_refused_and_not_repeated() -> None:
    for name in ("token", "api_key", "password"):
        with pytest.raises(SpecError, match=f"{name} looks like a credential") as caught:
            load_model(f"https://h/x?protocol=mlflow&{name}=hunter2")
        assert "hunter2" not in str(caught.value)


def test_a_normalisation_is_applied_before_sending(server: Server) -> None:
    model = load_model(mlflow_spec(server, mean=0.5, std=0.25))
    model.probabilities(IMAGES[:4])
    sent = np.array(json.loads(server.seen[0][3])["inputs"], np.float32)
    np.testing.assert_array_equal(sent, ((IMAGES[:4] - 0.5) / 0.25).numpy())
    assert model.info.normalisation == "mean 0.5 std 0.25"


def test_a_model_that_is_let_go_closes_its_connections(server: Server) -> None:
    model = load_model(mlflow_spec(server, batch=8))
    other = model.again()
    model.probabilities(IMAGES)
    del model
    gc.collect()
    other.probabilities(IMAGES)  # what they share lives on
    del other
    gc.collect()  # an open socket would be a ResourceWarning, which fails the test


def test_an_interrupt_is_not_held_up_by_tries_in_hand(server: Server) -> None:
    server.routes["/invocations"] = lambda body, headers: (500, {}, b"")
    model = load_model(mlflow_spec(server, batch=8, backoff=60, concurrency=2))

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.probabilities(IMAGES)
    finally:
        signal.signal(signal.SIGALRM, before)
    server.routes["/invocations"] = mlflow_route()
    while any(thread.name.startswith("raybench-http") for thread in busy()):
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    np.testing.assert_array_equal(model.labels(IMAGES).numpy(), EXPECTED.argmax(1))


def busy() -> list[threading.Thread]:
    """Return the threads that wait in the client."""
    frames = sys._current_frames()
    return [
        thread
        for thread in threading.enumerate()
        if thread.ident in frames and "_pass" in stack(frames[thread.ident])
    ]


def stack(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names
