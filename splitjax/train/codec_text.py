"""Codecs from text, as a command line has them."""

import ast
import inspect
from typing import Any

from splitjax import codecs
from splitjax.core.codec import Codec, chain
from splitjax.core.tree import nearest


def codec_of(text: str) -> Codec:
    """The codec that a text names: calls of the factories of `splitjax.codecs`.

    A "+" chains. Arguments are constants, tuples, dicts and other codecs; nothing else
    is evaluated.

    Args:
      text: as "ragged() + quantize(4, axis='channel')".

    Raises:
      ValueError: for a text that is no such call, a factory that there is not (the
        nearest is named), or arguments that the factory refuses.

    Example:
      >>> codec_of("ragged() + cast('bf16')").name
      'ragged+cast(bf16)'
      >>> codec_of("on_tree({'h': quantize(8)})").name
      'h:quantize(8,token,affine,nearest)'
    """
    try:
        made = _value(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise _no_codec(text, f"{error.msg}, column {error.offset}") from error
    except (ValueError, TypeError) as error:
        raise _no_codec(text, str(error)) from error
    if not isinstance(made, Codec):
        raise _no_codec(text, f"it is a {type(made).__name__}")
    return made


def factories() -> dict[str, Any]:
    """The functions of `splitjax.codecs` that make a codec, by name.

    Example:
      >>> "quantize" in factories(), "wire_bytes" in factories()
      (True, False)
    """
    return {
        name: made
        for name, made in vars(codecs).items()
        if inspect.isfunction(made)
        and inspect.signature(made).return_annotation is Codec
    }


def _no_codec(text: str, why: str) -> ValueError:
    return ValueError(
        f"{text!r} is no codec: {why}. Write it as 'ragged() + quantize(4)'"
    )


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return chain(_value(node.left), _value(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        known, name = factories(), node.func.id
        if name not in known:
            near = nearest(name, tuple(sorted(known)))
            raise ValueError(f"no factory {name!r}: {near}")
        named = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError("'**' is not read here")
            named[keyword.arg] = _value(keyword.value)
        return known[name](*(_value(a) for a in node.args), **named)
    if isinstance(node, ast.Tuple):
        return tuple(_value(part) for part in node.elts)
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key else None for key in node.keys]
        return dict(zip(keys, map(_value, node.values), strict=True))
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is no constant and no call") from None
