"""Exported programs: every way in which a file could run code is refused, and none is taken."""

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raybench.core.catalog import load_model
from raybench.core.errors import SpecError

CODE = "__import__('pathlib').Path('exploded').touch()"


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Net(nn.Module):
    """With a constant, arithmetic on sizes, and text among the arguments of its operators."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 10)
        self.scale = torch.arange(1.0, 4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        means = torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3] // 2)
        return self.last(means.expand(-1, 3) * self.scale)


@pytest.fixture(scope="module")
def exported() -> bytes:
    torch.manual_seed(0)
    sides = {2: torch.export.Dim("H", min=4, max=64), 3: torch.export.Dim("W", min=4, max=64)}
    sizes = ({0: torch.export.Dim("N"), **sides},)
    program = torch.export.export(Net(), (torch.rand(5, 1, 8, 8),), dynamic_shapes=sizes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


@pytest.fixture
def honest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: bytes) -> Path:
    """A program that torch.export saved, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt2").write_bytes(exported)
    return tmp_path / "net.pt2"


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> str:
    """Return the spec of a copy of the archive, its records (by path below the root) changed."""
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile("evil.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(f"evil/{name}", content)
    return "exported:evil.pt2?shape=1x8x8"


def edited(path: Path, name: str, change: Callable[[dict[str, Any]], None]) -> str:
    def edit(records: dict[str, bytes]) -> None:
        content = json.loads(records[name])
        change(content)
        records[name] = json.dumps(content).encode()

    return rewritten(path, edit)


def edited_program(path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    return edited(path, "models/model.json", change)


def refused(spec: str, text: str) -> None:
    with pytest.raises(SpecError, match=r"evil\.pt2 is refused.*would run code") as caught:
        load_model(spec)
    assert text in str(caught.value)
    assert not Path("exploded").exists()


def test_an_honest_program_answers_as_its_network(honest: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = load_model("exported:net.pt2")
    torch.testing.assert_close(model.logits(images), Net()(images))
    assert model.info.input_shape == (1, 0, 0)
    assert model.logits(torch.rand(3, 1, 12, 6)).shape == (3, 10)
    assert load_model(rewritten(honest, lambda records: None)).info.num_classes == 10


def test_pickled_sample_inputs_are_refused(honest: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        records["data/sample_inputs/model.pt"] = saved(((Bomb(),), {}))

    refused(rewritten(honest, change), "it asks for ")
    assert torch.load.__name__ == "load"  # put back


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_pickled_tensors_are_refused(honest: Path, kind: str) -> None:
    def change(records: dict[str, bytes]) -> None:
        config = json.loads(records[f"data/{kind}/model_{kind}_config.json"])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        records[f"data/{kind}/model_{kind}_config.json"] = json.dumps(config).encode()
        records[f"data/{kind}/{entry['path_name']}"] = saved(Bomb())

    refused(rewritten(honest, change), "it asks for ")


@pytest.mark.parametrize("prefix", ["opaque_obj", "custom_obj"])
def test_objects_among_the_constants_are_refused(honest: Path, prefix: str) -> None:
    def change(records: dict[str, bytes]) -> None:
        config = json.loads(records["data/constants/model_constants_config.json"])
        next(iter(config["config"].values()))["path_name"] = f"{prefix}_0"
        records["data/constants/model_constants_config.json"] = json.dumps(config).encode()
        records[f"data/constants/{prefix}_0"] = pickle.dumps(Bomb())

    refused(rewritten(honest, change), f"the constant {prefix}_0 is an object")


def test_compiled_code_is_refused(honest: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        records["data/aotinductor/model/model.so"] = b"\x7fELF"

    refused(rewritten(honest, change), "model.so is compiled code")


@pytest.mark.parametrize(
    "size",
    [
        CODE,
        f"Max(1, {CODE})",
        "Integer(1).__class__",
        f'Max(1, "{CODE}")',
        "(Integer(1) #\n)",
        "[Integer(1) for x in (1,)][0]",
    ],
)
def test_sizes_that_are_code_are_refused(honest: Path, size: str) -> None:
    def change(program: dict[str, Any]) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = size

    refused(edited_program(honest, change), "size")


def test_a_size_hidden_under_the_name_of_text_is_refused(honest: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]
        values["metadata"] = values.pop("x")
        values["metadata"]["sizes"][0]["as_expr"]["expr_str"] = CODE

    refused(edited_program(honest, change), "size")


@pytest.mark.parametrize(
    "operator",
    [
        "torch.os.system",
        "torch.ops.load_library",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.from_file.default",
        "_operator.methodcaller",
        "_operator.call",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
    ],
)
def test_operators_that_are_not_torchs_own_are_refused(honest: Path, operator: str) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = operator

    refused(edited_program(honest, change), f"operator {operator!r}")


def test_an_operator_hidden_among_text_is_refused(honest: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        hidden = {"as_string_to_argument": {"as_string": {"as_operator": "torch.os.system"}}}
        node["inputs"].append({"name": "x", "arg": hidden, "kind": 1})

    refused(edited_program(honest, change), "operator 'torch.os.system'")


@pytest.mark.parametrize("place", ["input", "argument", "parameter"])
def test_names_that_would_become_source_are_refused(honest: Path, place: str) -> None:
    def change(program: dict[str, Any]) -> None:
        inner = program["graph_module"]
        if place == "input":
            inner["graph"]["inputs"][-1]["as_tensor"]["name"] = f"x={CODE}"
        elif place == "argument":
            inner["module_call_graph"][0]["signature"]["forward_arg_names"] = [f"x={CODE}"]
        else:
            inner["signature"]["input_specs"][0]["parameter"]["parameter_name"] = f'"+{CODE}+"'

    refused(edited_program(honest, change), "is not of the form")


def test_containers_that_import_a_module_are_refused(
    honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("evilmodule.py").write_text("from pathlib import Path\nPath('exploded').touch()\n")
    monkeypatch.syspath_prepend(".")
    context = {"__enum__": True, "fqn": "evilmodule:X", "name": "Y"}
    factory = {"default_factory_module": "evilmodule", "default_factory_name": "x"}
    for kind, inside in (
        ("builtins.dict", json.dumps([context])),
        ("collections.defaultdict", json.dumps(factory | {"dict_context": []})),
    ):

        def change(program: dict[str, Any], kind: str = kind, inside: str = inside) -> None:
            signature = program["graph_module"]["module_call_graph"][0]["signature"]
            tree = {"type": kind, "context": inside, "children_spec": []}
            signature["out_spec"] = json.dumps([1, tree])

        refused(edited_program(honest, change), "is not of the form")
    assert "evilmodule" not in sys.modules


def test_guards_are_not_run(honest: Path, images: torch.Tensor) -> None:
    spec = edited_program(honest, lambda program: program["guards_code"].append(CODE))
    assert load_model(spec).logits(images).shape == (5, 10)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("where", ["serialized_example_inputs.pt", "program"])
def test_the_format_of_older_torch_is_held_to_the_same(honest: Path, where: str) -> None:
    with zipfile.ZipFile(honest) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    program = json.loads(records["models/model.json"])
    parts = {
        "serialized_state_dict.pt": saved(dict(Net().state_dict())),
        "serialized_constants.pt": saved({"scale": Net().scale}),
        "serialized_example_inputs.pt": saved(((torch.rand(5, 1, 8, 8),), {})),
    }
    if where == "program":
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
    else:
        parts[where] = saved(((Bomb(),), {}))
    version = program["schema_version"]
    with zipfile.ZipFile("evil.pt2", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("version", f"{version['major']}.{version['minor']}")
        archive.writestr("serialized_exported_program.json", json.dumps(program))
        for name, content in parts.items():
            archive.writestr(name, content)
    refused("exported:evil.pt2?shape=1x8x8", "operator" if where == "program" else "it asks for ")
