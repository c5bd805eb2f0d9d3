"""Models from files and importable factories: file, torchscript, exported and python specs."""

import importlib
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raybench.core.errors import RaybenchError, SpecError, near_miss
from raybench.core.spec import Spec
from raybench.core.types import Access, Model, ModelInfo
from raybench.models import options as shared
from raybench.models.archives import refuse_claims
from raybench.models.programs import load_program, source_module
from raybench.models.torch_model import LimitedModel, limit
from raybench.models.weights import load_strictly, read_state
from raybench.models.wrap import Facts, wrap

__all__ = ["load_exported", "load_file", "load_python", "load_torchscript"]


def load_file(spec: Spec, *, device: str) -> Model:
    """Return the network of ``arch=pkg.module:factory`` with the weights of a file.

    The file is .safetensors, or what torch saved, read with ``weights_only``; see
    `raybench.models.weights`. The factory takes no arguments and returns a torch module.

    Raises:
        SpecError: absent or refused file, a factory that cannot be used, weights that do not fit.
    """
    options = shared.read(spec, {"arch": str})
    path = _existing(spec)
    if "arch" not in options.extra:
        raise SpecError(
            f"{spec}: a file of weights says nothing of the network; name what builds it with "
            "arch=pkg.module:factory"
        )
    module = _call_factory(options.extra["arch"], spec)
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"{spec}: arch={options.extra['arch']} returned a {type(module).__name__}, expected a "
            "torch.nn.Module"
        )
    load_strictly(module, read_state(path, spec), spec)
    facts = Facts(access=Access.INTERNALS, details=(("file", path.name),))
    return wrap(module, spec, options, facts, device=device)


def load_torchscript(spec: Spec, *, device: str) -> Model:
    """Return the model of a TorchScript archive; its fingerprint is that of the file.

    Sub-modules run inside TorchScript, where no hook sees them: access ends at GRADIENTS.

    Raises:
        SpecError: absent, not a TorchScript archive, or one that would take more memory than
            `raybench.core.limits` allows.
    """
    options = shared.read(spec)
    path = _existing(spec)
    try:
        refuse_claims(path, spec)
        with warnings.catch_warnings():
            # The format is frozen, not withdrawn, and existing archives are what this is for.
            warnings.filterwarnings("ignore", r".*torch\.jit\.", FutureWarning)
            warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
            module: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu"
            )
    except SpecError:
        raise
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise SpecError(
            f"{spec}: {path.name} is not a readable TorchScript archive "
            f"({_first_line(error)}); weights alone are named with file:...?arch=..."
        ) from error
    facts = Facts(access=Access.GRADIENTS, files=(path,), details=(("file", path.name),))
    return wrap(module, spec, options, facts, device=device)


def load_exported(spec: Spec, *, device: str) -> Model:
    """Return the model of a torch.export program; its fingerprint is that of the file.

    Raises:
        SpecError: absent, not such a program, one that could run code (see
            `raybench.models.programs`), one that takes something else than one image tensor, or
            one exported for a fixed batch size.
    """
    options = shared.read(spec)
    path = _existing(spec)
    program = load_program(path, spec)
    size = _program_shape(program, spec)
    facts = Facts(
        access=Access.GRADIENTS, shape=size, files=(path,), details=(("file", path.name),)
    )
    return wrap(_Program(source_module(program)), spec, options, facts, device=device)


def load_python(spec: Spec, *, device: str) -> Model:
    """Return the model made by a factory: ``python:pkg.module:factory``, called without arguments.

    A torch module is wrapped with the spec's options. A raybench `Model` is taken as it is, moved
    nowhere; only the options ``access`` and ``name`` apply to it.

    Raises:
        SpecError: the factory cannot be imported, fails, or returns something else.
    """
    options = shared.read(spec)
    made = _call_factory(spec.rest, spec)
    if isinstance(made, nn.Module):
        facts = Facts(access=Access.INTERNALS, details=(("factory", spec.rest),))
        return wrap(made, spec, options, facts, device=device)
    # By its info and not by isinstance: that would ask for every method, also of a LABELS model.
    if not isinstance(getattr(made, "info", None), ModelInfo):
        raise SpecError(
            f"{spec}: the factory returned a {type(made).__name__}, expected a torch.nn.Module or "
            "a raybench Model (with info, device, labels ...)"
        )
    refused = [name for name, _ in spec.options if name not in ("access", "name")]
    if refused:
        raise SpecError(
            f"{spec}: {', '.join(refused)} cannot be set on a ready raybench Model; its factory "
            "settles them"
        )
    model: Model = made
    name = options.name or model.info.name
    info = replace(model.info, spec=spec.canonical(), name=name)
    named = LimitedModel(model, info)
    if options.access is None:
        return named
    if options.access > info.access:
        raise SpecError(
            f"{spec}: access={options.access.name.lower()} is above what this model offers "
            f"({info.access.name.lower()})"
        )
    return limit(named, options.access)


class _Program(nn.Module):
    """An exported program's module, which refuses ``eval()``: its mode was fixed at export."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> "_Program":
        """Change nothing: the graph holds one mode."""
        self.training = mode
        return self

    def forward(self, images: torch.Tensor) -> Any:
        """Return what the program returns for `images` [N, C, H, W]."""
        return self.program(images)


def _program_shape(program: Any, spec: Spec) -> tuple[int, int, int]:
    wanted = set(program.graph_signature.user_inputs)
    sizes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    if len(sizes) != 1 or len(sizes[0]) != 4:
        raise SpecError(
            f"{spec}: the program takes {[list(map(str, size)) for size in sizes]}, expected one "
            "tensor of images [N, C, H, W]"
        )
    batch, *image = sizes[0]
    if isinstance(batch, int):
        raise SpecError(
            f"{spec}: the program was exported for batches of exactly {batch}; export it again "
            "with dynamic_shapes=({0: torch.export.Dim('N')},)"
        )
    channels, height, width = (size if isinstance(size, int) else 0 for size in image)
    return channels, height, width


def _existing(spec: Spec) -> Path:
    if not spec.rest:
        raise SpecError(f"{spec}: expected a path, as in {spec.scheme}:folder/file")
    path = Path(spec.rest).expanduser()
    if not path.is_file():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SpecError(f"{spec}: there is no file {path}{near_miss(path.name, beside[:20])}")
    return path


def _call_factory(target: str, spec: Spec) -> Any:
    factory = _import(target, spec)
    try:
        return factory()
    except RaybenchError:
        raise
    except Exception as error:
        raise SpecError(
            f"{spec}: {target}() failed with {type(error).__name__}: {_first_line(error)}"
        ) from error


def _import(target: str, spec: Spec) -> Callable[[], Any]:
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise SpecError(f"{spec}: expected pkg.module:factory, found {target!r}")
    folder = os.getcwd()
    # Console scripts do not have the working directory on the path, `python script.py` does.
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise SpecError(
            f"{spec}: {name!r} cannot be imported ({type(error).__name__}: {_first_line(error)}); "
            "it must be installed, or lie in the working directory"
        ) from error
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
    found: Any = module
    for piece in attribute.split("."):
        if not hasattr(found, piece):
            public = [each for each in dir(found) if not each.startswith("_")]
            raise SpecError(f"{spec}: {name} has no {piece!r}{near_miss(piece, public)}")
        found = getattr(found, piece)
    if not callable(found):
        raise SpecError(f"{spec}: {target} is a {type(found).__name__}, expected a factory")
    factory: Callable[[], Any] = found
    return factory


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
