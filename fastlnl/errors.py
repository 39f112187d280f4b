"""What goes wrong, by name. Every text says what came, what was expected and what to do."""


class ShapeError(ValueError):
    """Shapes, types or devices of the arguments do not fit together."""


class LabelError(ValueError):
    """A label or a sample id lies outside its range."""


class BackendError(RuntimeError):
    """A backend was asked for that cannot do this here."""


class StateError(RuntimeError):
    """Saved state does not belong to this data or this method."""


class DefinitionError(ValueError):
    """A loss definition is not one, or its gradient is not the gradient of its loss."""
