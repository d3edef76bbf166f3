"""What is never written or shown: keys, tokens, passwords, and the credentials inside a URL.

They belong into environment variables; where one is given all the same, it is used and hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "***"

_SECRET = re.compile(
    r"key|token|secret|passw|pwd|auth|bearer|credential|cookie|header|(?:^|[-_])sig", re.I
)

_HARMLESS = re.compile(
    r"\w*_env\b|tokeni[sz][a-z]*|token_(?:ids?|types?)|keywords?|"
    r"(?<![a-z])(?:max|min|num|new|stop|special)\w*_tokens|"
    r"(?<![a-z])(?:bos|eos|pad|unk|sep|cls|mask|prefix|begin|start|end|stop|special|image)"
    r"_tokens?(?:_ids?)?",
    re.I,
)
"""Names that are about a vocabulary, though a word of a secret is in them."""

_URL = re.compile(r"(?<![\w+.-])([a-z][a-z0-9+.-]*://)(?:[^\s/?#'\"<>]*@)?([^\s'\"<>]*)", re.I)

_PARAMETER = re.compile(r"([?&;])([^=&;?#]+)=([^&;#\s]+)")


def is_secret(name: str) -> bool:
    """Whether what goes by this name must not be shown.

    >>> [is_secret(name) for name in ("api_key", "auth_token", "tokenizer", "add_bos_token")]
    [True, True, False, False]
    """
    return bool(_SECRET.search(_HARMLESS.sub("", name)))


def without_credentials(url: str) -> str:
    """A URL without user, password and query: what may be shown and stored."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def clean(text: str) -> str:
    """A text whose URLs name no user, no password and no key.

    >>> clean("http://me:word@host/v1?api_key=k&n=1: refused")
    'http://host/v1?api_key=***&n=1: refused'
    """

    def hide(found: re.Match[str]) -> str:
        secret = is_secret(found[2]) or found[2].lower() in ("code", "policy")
        return f"{found[1]}{found[2]}={HIDDEN}" if secret else found[0]

    return _URL.sub(lambda url: url[1] + _PARAMETER.sub(hide, url[2]), text)


def shown(value: Any, name: str = "") -> Any:
    """Plain data as it may be written: what goes by a secret name is hidden, a URL cleaned.

    True and false tell nothing and stay.
    """
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {
            key: shown(one, f"{name}.{key}" if is_secret(name) else str(key)) for key, one in items
        }
    if isinstance(value, list | tuple):
        return [shown(one, name) for one in cast("list[Any]", value)]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(name):
        return HIDDEN
    return clean(value) if isinstance(value, str) else value


def secrets(value: Any, name: str = "") -> list[str]:
    """The texts that `shown` hides, longest first, to take them out of other people's messages."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        found = [
            s
            for key, one in items
            for s in secrets(one, f"{name}.{key}" if is_secret(name) else str(key))
        ]
    elif isinstance(value, list | tuple):
        found = [s for one in cast("list[Any]", value) for s in secrets(one, name)]
    elif value is None or isinstance(value, bool):
        found = []
    else:
        found = [str(value)] if is_secret(name) else _inside(str(value))
    return sorted({one for one in found if one}, key=len, reverse=True)


def _inside(text: str) -> list[str]:
    """User, password and keys of the URLs in a text."""
    found: list[str] = []
    for url in _URL.finditer(text):
        try:
            parts = urlsplit(url[0])
            found += [parts.username or "", parts.password or ""]
        except ValueError:
            continue
        found += [p[3] for p in _PARAMETER.finditer(url[2]) if is_secret(p[2])]
    return found


def without(text: str, hidden: list[str]) -> str:
    """A text without some secrets and without the credentials in its URLs, in one line."""
    for one in hidden:
        text = text.replace(one, HIDDEN)
    return " ".join(clean(text).split())
