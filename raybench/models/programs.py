"""Programs of torch.export, read as data: what could run code of the file's own is refused.

    program = load_program(Path("net.pt2"), "exported:net.pt2")

``torch.export.load`` trusts its file: it unpickles what ``weights_only`` refuses, opens shared
libraries, evaluates size expressions and writes names from the file into Python source. So all of
that is looked at first, through torch's own reader of the archive, and what does not have the form
torch.export gives it is refused; the rest is loaded with ``weights_only`` in force throughout.
"""

import ast
import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram

from raybench.core.errors import SpecError
from raybench.models.archives import refuse_claims

__all__ = ["load_program", "source_module"]

_SHOWN = 80

# Names become Python identifiers of generated source, paths attributes of the module.
_NAME = re.compile(r"\w*", re.ASCII)
_PATH = re.compile(r"[\w.:@+\-]*", re.ASCII)
_NAMES = ("name", "as_name", "forward_arg_names")
# Text that is kept or quoted, and never becomes part of source; `source_module` on the guards.
_TEXT = ("metadata", "as_string", "as_strings", "torch_version", "guards_code")
# Fields whose keys the file chooses: they must not pass for the names of fields.
_MAPS = (
    *("tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values"),
    *("custom_obj_values", "as_string_to_argument", "opset_version", "range_constraints"),
    "treespec_namedtuple_fields",
)
_PAYLOADS = ("data/constants/", "data/weights/")
_LEGACY_PROGRAM = "serialized_exported_program.json"

# What torch.export writes: operators of torch itself, and arithmetic on sizes. attrgetter,
# methodcaller and call of the operator module could reach anything.
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision)\.(?!(from_file|save)\b)"
    r"(_?[A-Za-z]\w*|__i?(and|or|xor|lshift|rshift)__)\.[A-Za-z]\w*"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|flex_attention"
    r"|invoke_subgraph|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|index|invert|le|lshift|lt|mod|mul|ne|neg"
    r"|not_|or_|pos|pow|rshift|sub|truediv|xor)"
    r"|math\.[a-z]\w*|torch\._?sym_[a-z]\w*",
    re.ASCII,
)
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|Piecewise|And|Or|Not|Xor|Eq"
    r"|Ne|Lt|Le|Gt|Ge|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan"
    r"|GreaterThan|ExprCondPair|Tuple|floor|ceiling|sqrt|exp|log|FloorDiv|ModularIndexing"
    r"|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat"
    r"|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_SYNTAX = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_WORD = re.compile(r"[A-Za-z_]\w*|[-+]?[\d.]+(e[-+]?\d+)?", re.ASCII)


class _CodeError(Exception):
    """The file would run code; the text says where."""


def load_program(path: Path, what: object) -> ExportedProgram:
    """Return the program that ``torch.export.save`` kept in `path`; `what` begins every message.

    Raises:
        SpecError: not such a file, damaged, one that loading would let run code, or one that would
            take more memory than `raybench.core.limits` allows.
    """
    try:
        refuse_claims(path, what)
        _inspect(path)
        with _weights_only():
            return torch.export.load(path)
    except SpecError:
        raise
    except (_CodeError, pickle.UnpicklingError) as error:
        raise SpecError(
            f"{what}: {path.name} is refused: loading it would run code from the file "
            f"({_reason(error)}); save the network again with torch.export.save, with tensors alone"
        ) from error
    except Exception as error:
        raise SpecError(
            f"{what}: {path.name} is not a readable torch.export program ({_reason(error)})"
        ) from error


def source_module(program: ExportedProgram) -> torch.nn.Module:
    """Return the module of a program of `load_program`.

    Its guards stay unused: they are lines of Python from the file.
    """
    return program.module(check_guards=False)


def _reason(error: Exception) -> str:
    text = str(error).strip() or repr(error)
    asked = re.search(r"GLOBAL ([\w.]*\w)", text)
    return f"it asks for {asked.group(1)}" if asked else text.splitlines()[0]


@contextmanager
def _weights_only() -> Iterator[None]:
    """Hold every ``torch.load`` to weights_only.

    ``torch.export.load`` asks again without it for what it refuses. Other threads' loads are held
    to it too while a program is read: they are ours, and ours always say so.
    """
    load = torch.load

    def strict(*args: Any, **options: Any) -> Any:
        return load(*args, **options | {"weights_only": True})

    torch.load = strict
    try:
        yield
    finally:
        torch.load = load


def _inspect(path: Path) -> None:
    """Refuse what is not tensors and operators of torch, in either of torch's two formats."""
    # What is no archive of torch's own, torch reads as a plain one, as torch 2.7 wrote them.
    legacy = False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            legacy = _LEGACY_PROGRAM in archive.namelist()
            if legacy:
                _inspect_program(archive.read(_LEGACY_PROGRAM))
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        if legacy:
            return
        raise
    for record in reader.get_all_records():
        if record.startswith("data/aotinductor/"):
            raise _CodeError(f"{record} is compiled code")
        if record.startswith("models/"):
            _inspect_program(reader.get_record(record))
        elif record.startswith(_PAYLOADS) and record.endswith(".json"):
            folder = record.rpartition("/")[0]
            for entry in json.loads(reader.get_record(record))["config"].values():
                name = str(entry["path_name"])
                if folder == "data/constants" and not name.startswith("tensor_"):
                    raise _CodeError(f"the constant {name} is an object, no tensor")
                _inspect_payload(entry, reader.get_record_size(f"{folder}/{name}"))


def _inspect_payload(entry: dict[str, Any], stored: int) -> None:
    """Refuse a tensor of values whose record holds none: torch would make it, of any size."""
    sizes = (entry["tensor_meta"] or {}).get("sizes", [])
    values = math.prod(size["as_int"] for size in sizes)
    if values and not stored:
        raise ValueError(f"{entry['path_name']} is empty, its declared sizes say {values:,} values")


def _inspect_program(content: bytes) -> None:
    _inspect_value("", json.loads(content))


def _inspect_value(key: str, value: Any) -> None:
    """Refuse anything below `value`, which stands under `key`, that could become code."""
    if key in _TEXT:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            if not _PATH.fullmatch(name):
                _refuse("name", name)
            _inspect_value("" if key in _MAPS else name, inner)
    elif isinstance(value, list):
        for inner in value:
            _inspect_value(key, inner)
    elif isinstance(value, str):
        _inspect_text(key, value)


def _inspect_text(key: str, text: str) -> None:
    if key in ("target", "as_operator"):
        if not _OPERATORS.fullmatch(text):
            _refuse("operator", text)
    elif key == "expr_str":
        _inspect_expression(text)
    elif key in ("in_spec", "out_spec"):
        _inspect_tree(json.loads(text)[1])
    elif not (_NAME if key in _NAMES else _PATH).fullmatch(text):
        _refuse(key, text)


def _inspect_expression(text: str) -> None:
    """Refuse a size expression, which sympy evaluates, unless it is arithmetic on symbols."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        _refuse("size", text)
    # sympy takes line breaks out first, after which the text may mean something else.
    if not (text.isascii() and text.isprintable()):
        _refuse("size", text)
    for node in nodes:
        known = isinstance(node, _SYNTAX)
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and bool(_FUNCTIONS.fullmatch(node.func.id))
        # sympy evaluates strings too.
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = bool(_WORD.fullmatch(node.value))
        if not known:
            _refuse("size", text)


def _inspect_tree(tree: Any) -> None:
    """Refuse containers that import a module by name; keys become argument names."""
    if tree["type"] not in _TREES:
        _refuse("container", str(tree["type"]))
    context = json.loads(tree["context"] or "null")
    for key in context if isinstance(context, list) else [] if context is None else [context]:
        if not isinstance(key, int) and not (isinstance(key, str) and _PATH.fullmatch(key)):
            _refuse("key", str(key))
    for child in tree["children_spec"]:
        _inspect_tree(child)


def _refuse(what: str, text: str) -> NoReturn:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    raise _CodeError(f"{what} {shown!r} is not of the form that torch.export writes")
