"""A secret that stands in the configuration, or in a file that the configuration names.

Strategy: beside the key of the secret there is one with `_file` behind its name. What the file
holds takes the place of the secret, its path the place of its name. The environment wins over the
configuration file, so only two of one kind exclude each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config.key import Key
from engine.config.secret_reference import is_reference
from engine.config.values import Unfit

if TYPE_CHECKING:
    from engine.config.parsed import Parsed


def settle_secret(parsed: "Parsed", key: Key) -> bool:
    """Find the secret of `key`; whether it was given. Complain where it was twice."""
    name = f"{key.name}_file"
    plain, file = parsed.given(key.section, key.name), parsed.given(key.section, name)
    if plain is not None and file is not None and plain.origin.kind == file.origin.kind:
        parsed.complain(key.section, name, f"is given beside {key.path}", "keep one of them")
    elif file is not None and (plain is None or file.origin.kind == "environment"):
        _read(parsed, key, name)
    else:
        parsed.values[key.section, name] = None
    return plain is not None or file is not None


def _read(parsed: "Parsed", key: Key, name: str) -> None:
    path = parsed.values.get((key.section, name))
    if path is None:
        return
    folder = parsed.gathered.file.parent if parsed.gathered.file else Path()
    file = parsed.values[key.section, name] = folder / path
    try:
        parsed.values[key.section, key.name] = read_secret(key, file)
    except Unfit as unfit:
        parsed.complain(key.section, name, unfit.text, unfit.hint)


def read_secret(key: Key, file: Path) -> Any:
    """What `file` holds, as `key` takes it. Raises Unfit, which repeats nothing of it."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unfit(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise Unfit("is not UTF-8 text") from None
    if is_reference(text):
        raise Unfit(
            "names a file whose content says where the secret is kept",
            f"write that into {key.path} itself",
        )
    try:
        return key.kind.parse(text)
    except Unfit as unfit:
        raise Unfit(f"names a file whose content {unfit.text}", unfit.hint) from unfit
