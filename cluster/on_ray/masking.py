"""Credentials in addresses, which no message shows."""

import re

_USER = re.compile(r"((?:\b[a-z][a-z\d+.-]*://)?)[^\s'\"(,]+@(?=[\[\w*])", re.IGNORECASE)
_QUERY = re.compile(r"(?<=[\w/\]])(?:\?(?=[^\s'\"<>)])|#(?=[^\s'\"<>)]*=))[^\s'\"<>)]*")


def masked(text: str) -> str:
    """A message of others without the user names, passwords, query strings and fragments of the addresses in it."""
    return _QUERY.sub("?***", _USER.sub(r"\1***@", text))


def masked_address(address: str) -> str:
    """An address likewise, whatever characters its secrets have."""
    scheme, separator, rest = address.partition("://") if "://" in address else ("", "", address)
    user, at, host = rest.rpartition("@")
    del user
    shown = re.split(r"[?#]", host, maxsplit=1)
    return f"{scheme}{separator}{'***@' if at else ''}{shown[0]}{'?***' if len(shown) > 1 else ''}"


def has_credentials(address: str) -> bool:
    """True where an address names a user, or has a query or a fragment, which is where tokens are put."""
    return any(sign in address for sign in "@?#")
