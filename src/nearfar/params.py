"""The scikit-learn face without importing scikit-learn: parameters by name, so that ``clone`` and grid searches work.

Importing scikit-learn costs more than a second, which a single query from the shell should not pay.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

from nearfar.errors import InputError, did_you_mean


class Params:
    """Parameters are the arguments of ``__init__``, stored unchanged under the same names."""

    @classmethod
    def _param_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; ``deep`` adds those of nested estimators as ``outer__inner``."""
        params: dict[str, Any] = {}
        for name in self._param_names():
            value = getattr(self, name)
            params[name] = value
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                params.update({f"{name}__{inner}": given for inner, given in value.get_params().items()})
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name, nested ones as ``outer__inner``; returns the estimator itself.

        Raises:
            InputError: there is no such parameter.
        """
        nested: dict[str, dict[str, Any]] = {}
        for key, value in params.items():
            name, _, inner = key.partition("__")
            if name not in self._param_names():
                raise InputError(f"{type(self).__name__} has no parameter {name!r}{did_you_mean(name, self._param_names())}")
            if inner:
                nested.setdefault(name, {})[inner] = value
            else:
                setattr(self, name, value)
        for name, values in nested.items():
            getattr(self, name).set_params(**values)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=None,
            input_tags=InputTags(),
        )

    def __repr__(self) -> str:
        signature = inspect.signature(type(self).__init__)
        shown = []
        for name in self._param_names():
            value = getattr(self, name)
            if repr(value) != repr(signature.parameters[name].default):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"
