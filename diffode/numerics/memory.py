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

    # Classes may have methods of the same name, one above the other.
    place = f"_answers of {method.__qualname__}"

    @functools.wraps(method)
    def once(self: Any, x: Any) -> Any:
        if type(x) is not float:
            return method(self, x)
        try:
            return self.__dict__[place][x]
        except KeyError:
            answers: dict[float, Any] = self.__dict__.setdefault(place, {})
            if len(answers) > _MOST:
                answers.clear()
            answer = answers[x] = method(self, x)
            return answer

    return cast(Method, once)
