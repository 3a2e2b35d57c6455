"""Functions of one number that are asked for the same numbers again and again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

#: Count of answers that an object keeps before it begins anew.
_MOST = 2**14

Method = TypeVar("Method", bound=Callable[..., Any])


def each_once(method: Method) -> Method:
    """A method of one number that is computed once for each float; other kinds of number are computed each time.

    The object keeps the answers, so that they have to depend on nothing of it that changes.

    >>> class Square:
    ...     @each_once
    ...     def of(self, x):
    ...         print("computed")
    ...         return x * x
    >>> square = Square()
    >>> square.of(3.0), square.of(3.0)
    computed
    (9.0, 9.0)
    """

    @functools.wraps(method)
    def once(self: Any, x: Any) -> Any:
        if type(x) is not float:
            return method(self, x)
        answers: dict[Any, Any] = self.__dict__.setdefault("_answers", {})
        found = answers.get((method, x))
        if found is None:
            if len(answers) > _MOST:
                answers.clear()
            found = answers[method, x] = method(self, x)
        return found

    return cast(Method, once)
