"""A factor whose arrays are factors themselves."""

import jax

from splitjax.core.factor import Factor, is_factor, register_factor


@register_factor
class Nested(Factor):
    """A factor some of whose arrays are factors in turn: a product of encoded halves.

    The inner ones are rebuilt, then the outer one is used as ever: they are small.

    Attributes:
      outer: the factor, with factors in the place of some of its arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from splitjax.factors.product import Product
      >>> half = Product(jnp.ones((6, 1)), jnp.ones((1, 2)))
      >>> Nested(Product(half, jnp.ones((2, 3)))).dot(jnp.ones(6)).tolist()
      [12.0, 12.0, 12.0]
    """

    outer: Factor

    @property
    def rebuilt(self) -> Factor:
        """The outer factor with arrays alone."""
        return jax.tree.map(
            lambda node: node.materialize() if is_factor(node) else node,
            self.outer,
            is_leaf=lambda node: is_factor(node) and node is not self.outer,
        )

    def materialize(self) -> jax.Array:
        """The dense kernel."""
        return self.rebuilt.materialize()

    def dot(self, x: jax.Array) -> jax.Array:
        """`x (..., I)` times the kernel, by the outer factor's own way."""
        return self.rebuilt.dot(x)
