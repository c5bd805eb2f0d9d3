"""ONNX graphs written by hand with a torch network's weights must answer as the network does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from raybench.core.catalog import load_model
from raybench.core.errors import AccessError, SpecError
from raybench.core.types import Access
from raybench.models.check import check_outputs


def graph(
    net: nn.Sequential,
    path: Path,
    *,
    batch: int | str = "N",
    image: tuple = (1, 8, 8),
    outputs: int = 1,
    kind: int = TensorProto.FLOAT,
    soft: bool = False,
    external: str | None = None,
) -> None:
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    weights = [numpy_helper.from_array(value, name) for name, value in state.items()]
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "3.weight", "3.bias"], ["d"], transB=1),
        helper.make_node("Softmax" if soft else "Identity", ["d"], ["y0"]),
    ]
    nodes += [helper.make_node("Identity", ["d"], [f"y{i}"]) for i in range(1, outputs)]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", kind, [batch, *image])],
            [
                helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [batch, 10])
                for i in range(outputs)
            ],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    if external is None:
        onnx.save(made, path)
    else:
        onnx.save(made, path, save_as_external_data=True, location=external, size_threshold=0)


def test_it_answers_as_the_torch_network(
    net: nn.Sequential, images: torch.Tensor, tmp_path: Path
) -> None:
    graph(net, tmp_path / "net.onnx")
    model = load_model(f"onnx:{tmp_path}/net.onnx")
    info = model.info
    assert (info.name, info.access, info.num_classes) == ("net", Access.LOGITS, 10)
    assert info.input_shape == (1, 8, 8)
    expected = net(images).detach()
    torch.testing.assert_close(model.logits(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        model.probabilities(images), expected.double().softmax(1), rtol=1e-4, atol=1e-6
    )
    assert torch.equal(model.labels(images), expected.argmax(1))
    assert check_outputs(model, images) == []
    with pytest.raises(AccessError, match="activations needs access level internals"):
        model.activations(images, ["a"])
    with torch.enable_grad():
        assert not model.logits(images.clone().requires_grad_(True)).requires_grad


def test_normalisation_output_and_access_options(
    net: nn.Sequential, images: torch.Tensor, tmp_path: Path
) -> None:
    graph(net, tmp_path / "net.onnx")
    graph(net, tmp_path / "soft.onnx", soft=True)
    plain = load_model(f"onnx:{tmp_path}/net.onnx")
    model = load_model(f"onnx:{tmp_path}/net.onnx?mean=0.5&std=0.25&access=scores")
    expected = net((images - 0.5) / 0.25).detach().double().softmax(1)
    torch.testing.assert_close(model.probabilities(images), expected, rtol=1e-4, atol=1e-6)
    assert model.info.normalisation == "mean 0.5 std 0.25"
    assert model.info.fingerprint != plain.info.fingerprint
    with pytest.raises(AccessError, match="logits needs access level logits"):
        model.logits(images)
    soft = load_model(f"onnx:{tmp_path}/soft.onnx?output=probabilities")
    assert soft.info.access == Access.SCORES
    assert check_outputs(soft, images) == []
    with pytest.raises(SpecError, match="access=gradients is above"):
        load_model(f"onnx:{tmp_path}/net.onnx?access=gradients")


def test_weights_outside_the_graph_are_part_of_the_fingerprint(
    net: nn.Sequential, images: torch.Tensor, tmp_path: Path
) -> None:
    graph(net, tmp_path / "net.onnx", external="weights.bin")
    spec = f"onnx:{tmp_path}/net.onnx"
    first = load_model(spec)
    torch.testing.assert_close(first.logits(images), net(images).detach(), rtol=1e-5, atol=1e-5)
    data = np.fromfile(tmp_path / "weights.bin", dtype=np.float32)
    data[0] += 1
    data.tofile(tmp_path / "weights.bin")
    second = load_model(spec)
    assert not torch.equal(second.logits(images), first.logits(images))
    assert second.info.fingerprint != first.info.fingerprint


@pytest.mark.parametrize("place", ["../weights.bin", "{outside}/weights.bin", "link.bin"])
def test_weights_outside_the_folder_of_the_graph_are_not_read(
    net: nn.Sequential, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    graph(net, folder / "net.onnx", external="weights.bin")
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    made = onnx.load(folder / "net.onnx", load_external_data=False)
    for entry in (entry for one in made.graph.initializer for entry in one.external_data):
        if entry.key == "location":
            entry.value = place.format(outside=tmp_path)
    (folder / "net.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(SpecError, match=r"net\.onnx cannot be run by onnxruntime: .*path"):
        load_model(f"onnx:{folder}/net.onnx")


def test_a_weight_that_declares_more_than_it_holds_is_refused(
    net: nn.Sequential, tmp_path: Path
) -> None:
    graph(net, tmp_path / "net.onnx")
    made = onnx.load(tmp_path / "net.onnx")
    for weight in made.graph.initializer:
        weight.dims[0] = 10**12
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(SpecError, match=r"net\.onnx cannot be run by onnxruntime"):
        load_model(f"onnx:{tmp_path}/net.onnx")


@pytest.mark.parametrize(
    ("fields", "option", "text"),
    [
        ({"batch": 1}, "", "takes batches of exactly 1; export it again with a dynamic batch"),
        ({"outputs": 2}, "", r"the graph gives y0 .*, y1 .*expected one tensor\(float\)"),
        ({}, "?shape=1x9x9", "shape=1x9x9 contradicts the graph's input 1x8x8"),
        ({}, "?classes=3", "classes=3 was declared, the network returns 10"),
        ({}, "?mean=0,0,0&std=1,1,1", "mean and std need 1 or 1 values"),
    ],
)
def test_graphs_that_cannot_serve_are_explained(
    net: nn.Sequential, tmp_path: Path, fields: dict, option: str, text: str
) -> None:
    graph(net, tmp_path / "net.onnx", **fields)
    with pytest.raises(SpecError, match=text):
        load_model(f"onnx:{tmp_path}/net.onnx{option}")


def test_absent_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no file"):
        load_model(f"onnx:{tmp_path}/net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"not a graph")
    with pytest.raises(SpecError, match=r"net\.onnx cannot be run by onnxruntime"):
        load_model(f"onnx:{tmp_path}/net.onnx")
