"""Names that packs import at their top and that cygnet does not have.

A pack that needs one of them for one of its nodes still loads, and its other nodes run; the use of such a name, whether
it is called, asked for an attribute or made the base of a class that is then instantiated, is an error that names it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cygnet.errors import UnsupportedError


class AbsentNameError(UnsupportedError, AttributeError):
    """A pack uses something of its host that cygnet does not have."""


class _Absent(type):
    name: str
    why: str

    def __call__(cls, *arguments: Any, **named: Any) -> NoReturn:
        raise AbsentNameError(f"{cls.name} is not there in cygnet: {cls.why}")

    def __getattr__(cls, attribute: str) -> NoReturn:
        if attribute.startswith("__"):  # Python's own questions
            raise AttributeError(attribute)
        raise AbsentNameError(f"{cls.name}.{attribute} is not there in cygnet: {cls.why}")


def absent(module: str, names: str, why: str, **there: Any) -> dict[str, Any]:
    """The ``names``, with spaces between, of a module, each as something that says ``why`` it is not there.

    ``there`` are attributes that each has nevertheless.
    """
    return {name: _Absent(name, (), {"name": f"{module}.{name}", "why": why, **there}) for name in names.split()}
